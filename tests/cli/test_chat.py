"""The chat, through a pipe and through a terminal."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.cli.chat import Session
from recycle_onnx.cli.chat_view import Tail, View
from recycle_onnx.export import export
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.untrusted import printable
from tests.helpers import tiny
from tests.helpers.command import assert_refused, run

TOKENS = 8
GREEN = "\x1b[1;32m"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers for minutes unless somebody stops it."""
    folder = tmp_path_factory.mktemp("chat")
    checkpoint = tiny.write_endless_base(folder / "model", context_length=100_000)
    attach(checkpoint, checkpoint)
    export(checkpoint, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def model(bundle: Path) -> RecycleModel:
    return recycle_onnx.load(bundle, threads=1)


def answers(model: RecycleModel, *messages: str, system: str | None = None) -> list[str]:
    """What a pipe shows for messages, from the Python face."""
    chat = model.conversation(system)
    sent = (chat.send(message, max_new_tokens=TOKENS) for message in messages)
    return ["".join(token.text for token in answer).lstrip() + "\n" for answer in sent]


def chat(bundle: Path, text: str | bytes, *options: object) -> tuple[str, str]:
    stdin = text.encode() if isinstance(text, str) else text
    result = run("chat", bundle, "-n", TOKENS, "--threads", 1, *options, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_a_pipe_gets_plain_text_whatever_is_said_of_colours(
    bundle: Path, model: RecycleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert chat(bundle, "the cat\n")[0] == "".join(answers(model, "the cat"))


def test_every_line_of_a_pipe_gets_its_answer(bundle: Path, model: RecycleModel) -> None:
    stdout, stderr = chat(bundle, "the cat\n\nand the dog", "--system", "the hen")
    assert stdout == "".join(answers(model, "the cat", "and the dog", system="the hen"))
    assert stdout != "".join(answers(model, "the cat", "and the dog"))
    assert stderr.count("cut off after 8 tokens") == 2


def test_a_message_may_have_several_lines_and_begin_with_a_slash(bundle: Path, model: RecycleModel) -> None:
    expected = answers(model, "the cat\nsat", "/reset the mat")
    assert chat(bundle, '"""the cat\nsat"""\n//reset the mat\n')[0] == "".join(expected)
    assert chat(bundle, '"""\nthe cat\nsat\n"""\n')[0] == expected[0]


def test_commands_change_the_conversation(bundle: Path, model: RecycleModel, tmp_path: Path) -> None:
    saved = tmp_path / "saved chat.safetensors"
    typed = (
        f"/strategy\nthe cat\n/strategy full\n/save {saved}\nthe dog\n/stats\n/reset\nthe dog\n/load {saved}\nthe dog\n"
    )
    stdout, stderr = chat(bundle, typed + "/help\n/tint\n/quit\nnever answered\n", "--system", "the hen")
    first, second = answers(model, "the cat", "the dog", system="the hen")
    (fresh,) = answers(model, "the dog", system="the hen")
    assert fresh != second
    assert stdout == first + second + fresh + second
    said = (
        "strategy: auto",
        "strategy: full",
        f"full: {TOKENS} tokens",
        "of 100000 tokens",
        "3 messages",
        "/reset",
        "green",
    )
    for words in said:
        assert words in stderr


MISTAKES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "an unknown command": (b"/rest\n", ("/rest", "/reset")),
    "an unknown strategy": (b"/strategy guess\n", ("'guess'", "verify")),
    "a file that does not exist": (b"/load nowhere.safetensors\n", ("nowhere.safetensors",)),
    "no file": (b"/save\n", ("/save", "file")),
    "nobody's folder": (b"/save ~nobody-of-this-name/chat\n", ("~nobody-of-this-name/chat",)),
    "statistics of nothing": (b"/stats\n", ("no answer yet",)),
    "a message without an end": (b'"""the cat\nsat', ('"""', "no end")),
    "no text": (b"caf\xe9\n", ("standard input", "UTF-8")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_pipe_ends_it(name: str, bundle: Path) -> None:
    text, words = MISTAKES[name]
    assert_refused(run("chat", bundle, stdin=text), 2, *words)


def test_a_strategy_that_does_not_suit_the_settings_is_refused(bundle: Path) -> None:
    assert_refused(run("chat", bundle, "--chain", 3, stdin=b"/strategy full\n"), 2, "'full' has no chain")


def test_a_loaded_conversation_overflows_as_the_command_line_says(bundle: Path, tmp_path: Path) -> None:
    saved, long = tmp_path / "chat.safetensors", "the cat sat on the mat. " * 100
    chat(bundle, f"{long}\n/save {saved}\n")
    model = recycle_onnx.load(bundle)
    view = Session(model, model.conversation(overflow="drop_oldest"), GREEDY, View(Console(), False))
    view.take(f"/load {saved}")
    assert view.conversation.overflow == "drop_oldest"
    assert len(view.conversation.messages) == 2


def test_what_drives_a_terminal_is_not_shown() -> None:
    assert printable("a\x1b]52;c;eA==\x07\tb\x9b2J\r\nc\x7f é🙂") == "a]52;c;eA==\tb2J\nc é🙂"


def test_settings_are_checked_before_anything_is_read(bundle: Path) -> None:
    assert_refused(run("chat", bundle, "--temperature", -1, stdin=b""), 2, "temperature is -1")
    assert_refused(run("chat", bundle, "--strategy", "guess", stdin=b""), 2, "'guess'")


def test_a_long_answer_shows_its_end() -> None:
    console = Console(width=20, height=8, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(Tail(Text("\n".join(f"line {n}" for n in range(100)))))
    assert shown.get().split("\n")[:5] == [f"line {n}" for n in range(95, 100)]


class Terminal:
    """The other end of a terminal that a program runs in."""

    def __init__(self, handle: int, process: subprocess.Popen[bytes]) -> None:
        self._handle, self.process, self.seen = handle, process, ""

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def wait_for(self, pattern: str, again: str = "") -> str:
        """Read until the pattern comes; give everything since the last call. In every silent second type `again`."""
        end = time.monotonic() + 120
        while not re.search(pattern, self.seen):
            assert time.monotonic() < end, (pattern, self.seen)
            if select.select([self._handle], [], [], 1)[0]:
                self.seen += os.read(self._handle, 65536).decode(errors="replace")
            else:
                self.type(again)
        seen, self.seen = self.seen, ""
        return seen


@contextmanager
def terminal(*arguments: object) -> Iterator[Terminal]:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "recycle_onnx", "chat", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals of this kind")
def test_ctrl_c_stops_the_answer_and_not_the_program(bundle: Path) -> None:
    with terminal(bundle, "-n", 90_000, "--threads", 1) as screen:
        screen.wait_for("> $")
        screen.type("\x03")
        screen.wait_for("> $", again="\x03")  # readline loses one that comes between its prompt and its waiting
        screen.type("the cat\n")
        screen.wait_for("tokens/s")
        screen.type("\x03")
        screen.wait_for("stopped")
        screen.type("/stats\n")
        screen.wait_for("cancelled")
        screen.type("/rest\n")
        screen.wait_for("no command /rest[^>]*> $")  # a Ctrl-D before the prompt is there may be lost
        screen.type("\x04")
        assert screen.process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals of this kind")
def test_recycled_tokens_are_tinted_on_request(bundle: Path) -> None:
    with terminal(bundle, "-n", TOKENS, "--threads", 1, "--strategy", "alternate") as screen:
        screen.wait_for("> $")
        screen.type("the cat\n")
        assert GREEN not in screen.wait_for("cut off")
        screen.type("/tint\n")
        screen.wait_for("are green")
        screen.type("the cat\n")
        assert GREEN in screen.wait_for("cut off")
        screen.type("/quit\n")
        assert screen.process.wait(60) == 0
