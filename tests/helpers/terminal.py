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

HELD = """
import os, sys
from recycle_onnx.cli import chat_view, main

gate = int(sys.argv.pop(1))
draw = chat_view.LiveAnswer._frame

def held(view, generation):
    draw(view, generation)
    if not os.read(gate, 1):
        chat_view.LiveAnswer._frame = draw

chat_view.LiveAnswer._frame = held
chat_view.SECONDS_BETWEEN_FRAMES = 0.002  # or a fast machine's answer would end before a test has seen its frames
main()
"""


class Terminal:
    """The other end of a terminal that a program runs in."""

    def __init__(self, handle: int, process: subprocess.Popen[bytes]) -> None:
        self.handle, self.process, self.seen = handle, process, ""
        self.output = b""
        """All that was ever written to it."""
        self.gate, self.waits_at = -1, -1
        """The ends of the pipe that lets the next frame of an answer pass, where they are `held`."""

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def let_pass(self, frames: int) -> None:
        """Have the program go on to draw so many frames of its answer, and hold again."""
        os.write(self.gate, b"." * frames)

    def release(self) -> None:
        """Have the program go on to the end."""
        os.close(self.gate)

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
def terminal(*arguments: object, rows: int = 24, columns: int = 80, held: bool = False) -> Iterator[Terminal]:
    """Run a command in a terminal of this size, and kill it at the end if it still runs.

    With `held` an answer stands still after each frame until it is let pass, however fast the machine is.
    """
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    screen = Terminal(ours, None)  # type: ignore[arg-type] # which has its size before the program begins
    if held:
        screen.waits_at, screen.gate = os.pipe()
    program = ["-c", HELD, str(screen.waits_at)] if held else ["-m", "recycle_onnx"]
    command = [sys.executable, *program, *map(str, arguments)]
    screen.resize(rows, columns)
    screen.process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
        pass_fds=(screen.waits_at,) if held else (),
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    if held:
        os.close(screen.waits_at)
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(ours)
