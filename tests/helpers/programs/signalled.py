"""A verb that is sent a signal at a point of its work, however fast or busy the machine is.

python signalled.py SIGNAL POINT verb …

A point is a line of the verb's progress, or a number: so many runs of its graphs. From another process a signal
comes some time later, when the work may be over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from recycle_onnx.cli import main
from recycle_onnx.runtime.decoding import half


def at_line(line: str, send: Callable[[], None]) -> None:
    write = sys.stderr.write

    def watched(text: str) -> int:
        written = write(text)
        if text.strip() == line:
            send()
        return written

    sys.stderr.write = watched  # type: ignore[method-assign]


def at_run(number: int, send: Callable[[], None]) -> None:
    run, runs = half.run, count(1)

    def watched(*arguments: Any) -> None:
        run(*arguments)
        if next(runs) == number:
            send()

    half.run = watched


if __name__ == "__main__":
    signal_number, point = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]

    def send() -> None:
        os.kill(os.getpid(), signal_number)

    if point.isdigit():
        at_run(int(point), send)
    else:
        at_line(point, send)
    main()
