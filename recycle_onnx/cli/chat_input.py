"""What people type: lines with history, or a pipe's; messages of several lines between triple quotes."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from recycle_onnx.cache import cache_folder
from recycle_onnx.errors import InputError

FENCE = '"""'
HISTORY = 1000
"""Lines that are kept."""


@dataclass
class Lines:
    """A source of messages, one at a time. `ask` gives a line, without its end, for a prompt to show."""

    ask: Callable[[str], str]
    interactive: bool

    @classmethod
    def standard(cls) -> Lines:
        """Read standard input: with editing and history where both ends are a terminal."""
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            _remember()
        return cls(input if interactive else _piped, interactive)

    def read(self) -> str:
        """Read the next message; between two `\\"\\"\\"` it has several lines, and so may a paste.

        Raises:
            EOFError: there are no more.
            InputError: it is no UTF-8 text.
        """
        line = _text(self.ask("> "))
        if not line.startswith(FENCE):
            return line
        lines = [line[len(FENCE) :]]
        while not lines[-1].rstrip().endswith(FENCE):
            try:
                lines.append(_text(self.ask("… ")))
            except EOFError as error:
                raise InputError(f"the message that began with {FENCE} has no end; expected {FENCE} again") from error
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip("\n")


@contextmanager
def unseen() -> Iterator[None]:
    """Let what is typed within the block wait for the next prompt: shown at once it would tear what is written."""
    if sys.platform == "win32" or not sys.stdin.isatty():  # Windows shows nothing before it is read
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _piped(_: str) -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text ({error})") from error


def _text(line: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:  # Python reads bytes that are no UTF-8 as halves of characters
        raise InputError(f"what was typed is not UTF-8 text ({error})") from error
    return line


def _remember() -> None:
    """Give `input` editing and a history that lasts, where Python has readline (Windows' console has its own)."""
    try:
        import readline
    except ImportError:
        return
    path = cache_folder() / "chat-history"
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY)

    def keep() -> None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            readline.write_history_file(path)

    atexit.register(keep)
