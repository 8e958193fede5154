"""What is on the screen of a chat, with keys pressed and the window's size changed while an answer is made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.runtime.model import Model
from tests.helpers.patience import PATIENCE
from tests.helpers.terminal import Terminal, terminal

pyte = pytest.importorskip("pyte", reason="pyte is not installed: pip install 'recycle-onnx[test]'")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals of this kind")
SETTINGS = {"max_new_tokens": 300, "temperature": 1.0, "seed": 3, "logit_bias": {0: float("-inf")}}
OPTIONS = ("-n", 300, "--temperature", 1, "--seed", 3, "--logit-bias", "0=-inf", "--threads", 1)
QUESTION = "Tell me a long story."
WIDEST = 120
"""Columns of the emulated terminal, which so never cuts what the program has written for a window."""


def rows(screen: Terminal) -> list[str]:
    """All rows that the terminal has shown, those that have scrolled off included."""
    emulated = pyte.HistoryScreen(WIDEST, 24, history=10_000, ratio=0.5)
    stream = pyte.ByteStream(emulated)
    stream.feed(screen.output)
    old = ["".join(row[column].data for column in range(WIDEST)) for row in emulated.history.top]
    return [row.rstrip() for row in (*old, *emulated.display)]


def answer_on(screen: Terminal) -> list[str]:
    """The rows of the answer to the first question, without the figures below it."""
    shown = rows(screen)
    start = next(index for index, row in enumerate(shown) if row == f"> {QUESTION}")
    end = next(index for index, row in enumerate(shown) if index > start and "tokens/s" in row)
    return shown[start + 1 : end]


@pytest.fixture
def story(sample_model: Model) -> str:
    text = sample_model.conversation().ask(QUESTION, None, **SETTINGS).text  # type: ignore[arg-type]
    assert len(text.split()) > 100
    return text


@pytest.fixture
def telling(sample_bundle: Path) -> Iterator[Terminal]:
    with terminal("chat", sample_bundle, *OPTIONS, "--tint", held=True) as screen:
        screen.wait_for("> $")
        screen.type(f"{QUESTION}\n")
        yield screen


def test_an_answer_stands_there_once_and_its_words_are_whole(telling: Terminal, story: str) -> None:
    telling.release()
    telling.wait_for(r"cut off[\s\S]*> $")
    shown = answer_on(telling)
    assert " ".join(shown).split() == story.split()
    assert max(map(len, shown)) <= 80


def test_what_is_typed_during_an_answer_waits_for_the_prompt(telling: Terminal, story: str) -> None:
    telling.wait_for("tokens/s")
    telling.type("zyx\nqwv")
    telling.release()
    seen = telling.wait_for("cut off[^>]*> zyx")
    assert "zyx" not in seen.partition("cut off")[0]
    assert " ".join(answer_on(telling)).split() == story.split()


def test_a_window_that_changes_its_size_shows_no_line_twice(telling: Terminal, story: str) -> None:
    for size in ((24, 60), (20, 100), (24, 50), (24, 70)):
        telling.wait_for("tokens/s")
        telling.resize(*size)
        telling.let_pass(2)  # the one after a new size only leaves what is there
    telling.release()
    telling.wait_for(r"cut off[\s\S]*> $")
    assert " ".join(answer_on(telling)).split() == story.split()
    assert not [row for row in rows(telling)[:-3] if row.startswith("auto · ") and "300 tokens" not in row]


def test_the_terminal_is_as_before_when_the_chat_has_ended(sample_bundle: Path) -> None:
    import termios

    with terminal("chat", sample_bundle, *OPTIONS, held=True) as screen:
        screen.wait_for("> $")
        before = termios.tcgetattr(screen.handle)
        screen.type(f"{QUESTION}\n")
        screen.wait_for("tokens/s")
        assert not termios.tcgetattr(screen.handle)[3] & termios.ECHO
        screen.type("\x03")
        screen.release()
        screen.wait_for("stopped[^>]*> $")
        assert termios.tcgetattr(screen.handle) == before
        screen.type("/quit\n")
        assert screen.process.wait(PATIENCE) == 0
    assert screen.output.count(b"\x1b[?25l") == screen.output.count(b"\x1b[?25h")  # the cursor is there again


def test_a_chat_begins_with_what_the_model_is(sample_bundle: Path, sample_model: Model) -> None:
    with terminal("chat", sample_bundle, "--threads", 1, "--strategy", "verify") as screen:
        shown = screen.wait_for("> $")
    context = sample_model.context_length
    assert f"bundle: fp32, trained module, context of {context} tokens, strategy verify" in shown
    assert "/help lists the commands" in shown


def test_a_text_that_is_higher_than_the_window_loses_nothing(endless_bundle: Path) -> None:
    with terminal("chat", endless_bundle, "-n", 2000, "--threads", 1, "--tint", rows=10, columns=60) as screen:
        screen.wait_for("> $")
        screen.type(f"{QUESTION}\n")
        screen.wait_for("cut off[^>]*> $")
    text = recycle_onnx.load(endless_bundle, threads=1).conversation().ask(QUESTION, max_new_tokens=2000).text
    kept = [character for character in "".join(answer_on(screen)) if character.isalnum()]
    assert kept == [character for character in text if character.isalnum()]
