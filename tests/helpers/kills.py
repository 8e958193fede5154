"""Runs a verb that is killed at its n-th look at the file system: `python -m tests.helpers.kills FOLDER N VERB …`.

With a point in it N is seconds after the start. Where it is 0 nobody is killed, and it prints how many looks and
seconds there were.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

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


def save(bundle: str, path: str) -> None:
    import recycle_onnx

    chat = recycle_onnx.load(bundle).conversation()
    assert list(chat.send("the cat", max_new_tokens=2))
    chat.save(path)


def prepack(bundle: str) -> None:
    import recycle_onnx

    recycle_onnx.load(bundle, prepacked=True).close()


def run(folder: str, last: str, verb: str, *arguments: str) -> None:
    from recycle_onnx.cli import main

    start = time.perf_counter()
    if "." in last:
        signal.setitimer(signal.ITIMER_REAL, float(last))  # its signal ends a process that does not handle it
    looks = watch(str(Path(folder)), 0 if "." in last else int(last))
    if verb in ("save", "prepack"):
        {"save": save, "prepack": prepack}[verb](*arguments)
    else:
        main([verb, *arguments], standalone_mode=False)
    print(looks[0], time.perf_counter() - start)


if __name__ == "__main__":
    run(*sys.argv[1:])
