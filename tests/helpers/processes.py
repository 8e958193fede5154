"""Programs in processes of their own, forked from one that has imported what they need.

To import it takes longer than what most of them do. Windows has no fork, and on macOS a process that has loaded
system libraries must not fork: there a program starts as a user's does.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.helpers import one_thread  # noqa: F401 -- sessions of the programs have one thread too
from tests.helpers.patience import PATIENCE

PRELOADED = (
    "pytest", "jinja2", "recycle_onnx.batch", "recycle_onnx.bench.calibrate", "recycle_onnx.cli.chat",
    "recycle_onnx.cli.export", "recycle_onnx.cli.generate", "recycle_onnx.serve.server",
)  # fmt: skip
COMMAND = ("-m", "recycle_onnx")
SIGNALLED = Path(__file__).with_name("programs") / "signalled.py"


@cache
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


class Program:
    """What `subprocess.Popen` is, for a process that another one forked."""

    def __init__(self, command: tuple[str, ...], settings: dict[str, Any]) -> None:
        ours, theirs = zip(*(processes().Pipe(duplex=False) for _ in ("stdout", "stderr")), strict=True)
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), "rb") for end in ours)
        self._process = processes().Process(target=perform, args=(command, theirs, settings), daemon=True)
        self._process.start()
        for end in (*ours, *theirs):
            end.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing where it has ended, which its parent, the fork server, may know before it tells."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Give the exit code; who has not ended by then is killed."""
        self._process.join(timeout)
        self.kill()
        self._process.join()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = PATIENCE) -> tuple[bytes, bytes]:
        """Give what is still written; who has not ended by then is killed."""
        with ThreadPoolExecutor(2) as readers:
            streams = [readers.submit(stream.read) for stream in (self.stdout, self.stderr)]
            self.wait(timeout)
            return streams[0].result(), streams[1].result()


def start(*command: object, limit: Callable[[], object] | None = None, **settings: Any) -> Program:
    """Start `recycle-onnx` with these arguments, or a program of a file whose path comes first.

    `settings` are `env`, `cwd` and `stdin`, bytes. `limit` is called before anything else; it has to be picklable.
    """
    words = tuple(map(str, command if isinstance(command[0], Path) else (*COMMAND, *command)))
    settings = {"env": dict(os.environ), "cwd": str(Path.cwd()), "stdin": b"", **settings}
    settings["env"] = {"PYTHONIOENCODING": "utf-8", **settings["env"]}
    if sys.platform == "linux":
        return Program(words, {**settings, "limit": limit})
    typed = settings.pop("stdin")
    made: Any = subprocess.Popen([sys.executable, *words], stdin=-1, stdout=-1, stderr=-1, preexec_fn=limit, **settings)
    made.stdin.write(typed)
    made.stdin.close()
    made.stdin = None
    return made


def start_signalled(number: signal.Signals, point: str | int, *command: object) -> Program:
    """Start `recycle-onnx` with these arguments; it is sent a signal as it tells a line, or after so many runs."""
    return start(SIGNALLED, int(number), point, *command)


def run(*command: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Start a program and wait for its end; its output is text in UTF-8."""
    program = start(*command, **settings)
    stdout, stderr = (written.decode().replace(os.linesep, "\n") for written in program.communicate(timeout=PATIENCE))
    assert program.returncode is not None
    return subprocess.CompletedProcess(command, program.returncode, stdout, stderr)


def perform(command: tuple[str, ...], ends: tuple[Connection, Connection], settings: dict[str, Any]) -> None:
    """Be the program, in a process that was forked for it."""
    os.environ.clear()
    os.environ.update(settings["env"])
    os.chdir(settings["cwd"])
    for end, number in zip(ends, (1, 2), strict=True):
        os.dup2(end.fileno(), number)
        end.close()
    encoding, _, errors = os.environ["PYTHONIOENCODING"].partition(":")
    sys.stdin = io.TextIOWrapper(io.BytesIO(settings["stdin"]), encoding, errors or None)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, errors=errors or None, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
    if settings["limit"]:
        settings["limit"]()
    if command[0] == "-m":
        sys.argv = ["", *command[2:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
