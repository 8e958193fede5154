"""Runs a verb that is killed at a moment, in a process forked from one that has imported all that verbs need."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.patience import PATIENCE
from tests.helpers.processes import processes

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree", "open")


def watch(folder: str, last: int) -> list[int]:
    """Count what concerns `folder`, and end there at the `last` one."""
    looks = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITES or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.fspath(arguments[0]).startswith(folder):
            looks[0] += 1
            if looks[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return looks


TEXTS = 20
"""Prompts of five blocks each: nearly all looks at the folder then are those of their saving."""


def save(bundle: str, path: str) -> None:
    import recycle_onnx

    chat = recycle_onnx.load(bundle).conversation()
    assert list(chat.send("the cat", max_new_tokens=2))
    chat.save(path)


def prepack(bundle: str) -> None:
    import recycle_onnx

    recycle_onnx.load(bundle, prepacked=True).close()


def prompts(bundle: str) -> None:
    import recycle_onnx
    from recycle_onnx.serve.prompt_files import PromptFiles
    from recycle_onnx.serve.prompt_saver import PromptSaver

    with recycle_onnx.load(bundle, threads=1) as model:
        model.prefill_chunk = 16
        saver = PromptSaver(PromptFiles(model, 1e9), TEXTS)
        for number in range(TEXTS):
            decoder = model.decoder("verify")
            decoder.prefill([number + place for place in range(41)])
            decoder.start_recycling(0)
            saver.offer(decoder)
        saver.close(PATIENCE)


LIBRARY = {"save": save, "prepack": prepack, "prompts": prompts}
"""What has no command of its own."""


def perform(folder: str, output: str, last: float, verb: str, *arguments: str) -> None:
    """Run the verb in this process, and write looks and seconds at the end of its output."""
    from recycle_onnx.cli import main

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ["RECYCLE_ONNX_CACHE"] = str(Path(folder) / "cache")
    start = time.perf_counter()
    if isinstance(last, float):
        signal.setitimer(signal.ITIMER_REAL, last)  # its signal ends a process that does not handle it
    looks = watch(folder, 0 if isinstance(last, float) else last)
    if verb in LIBRARY:
        LIBRARY[verb](*arguments)
    else:
        main([verb, *arguments], standalone_mode=False)
    print(looks[0], time.perf_counter() - start, flush=True)


@dataclass(frozen=True)
class Ended:
    """How a process ended, minus the signal's number where one ended it, and what it wrote."""

    returncode: int | None
    output: str


def run(folder: Path, last: float, *command: object) -> Ended:
    """Run a verb that is killed at its `last` look at the folder, or after so many seconds where it is a float.

    Where it is 0 nobody is killed.
    """
    output = folder.with_suffix(".txt")
    arguments = (str(folder), str(output), last, *map(str, command))
    process = processes().Process(target=perform, args=arguments)
    process.start()
    process.join()
    return Ended(process.exitcode, output.read_text(encoding="utf-8") if output.exists() else "")
