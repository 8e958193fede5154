"""A terminal with `recycle-onnx` in it: what a person types there, and sees."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.helpers.patience import PATIENCE

EVERY_FRAME = """
from recycle_onnx.cli import chat_view, main
chat_view.SECONDS_BETWEEN_FRAMES = 0.0
main()
"""


class Terminal:
    """The other end of a terminal that a program runs in."""

    def __init__(self, handle: int, process: subprocess.Popen[bytes]) -> None:
        self.handle, self.process, self.seen = handle, process, ""
        self.output = b""
        """All that was ever written to it."""

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, pattern: str, again: str = "") -> str:
        """Read until the pattern comes; give everything up to there. In every silent second type `again`."""
        end = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < end, (pattern, self.seen)
            if select.select([self.handle], [], [], 1)[0]:
                data = os.read(self.handle, 65536)
                self.output += data
                self.seen += data.decode(errors="replace")
            else:
                self.type(again)
        seen, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return seen


@contextmanager
def terminal(*arguments: object, rows: int = 24, columns: int = 80, every_frame: bool = False) -> Iterator[Terminal]:
    """Run a command in a terminal of this size, and kill it at the end if it still runs.

    With `every_frame` an answer is drawn anew for each of its tokens. Of so much the terminal holds some frames, and
    then the program waits until they are read: an answer does not end while nobody looks.
    """
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    program = ["-c", EVERY_FRAME] if every_frame else ["-m", "recycle_onnx"]
    command = [sys.executable, *program, *map(str, arguments)]
    screen = Terminal(ours, None)  # type: ignore[arg-type] # which has its size before the program begins
    screen.resize(rows, columns)
    screen.process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(ours)
