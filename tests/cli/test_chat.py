"""The chat, through a pipe and through a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import recycle_onnx
from recycle_onnx.cli.chat_session import Session
from recycle_onnx.cli.chat_view import View
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import Model
from recycle_onnx.untrusted import printable
from tests.helpers.command import assert_refused, run
from tests.helpers.patience import PATIENCE
from tests.helpers.terminal import terminal

TOKENS = 8
GREEN = "\x1b[1;32m"


@pytest.fixture(scope="module")
def model(endless_bundle: Path) -> Model:
    return recycle_onnx.load(endless_bundle, threads=1)


def answers(model: Model, *messages: str, system: str | None = None) -> list[str]:
    """What a pipe shows for messages, from the Python face."""
    chat = model.conversation(system)
    sent = (chat.send(message, max_new_tokens=TOKENS) for message in messages)
    return ["".join(token.text for token in answer).lstrip() + "\n" for answer in sent]


def chat(endless_bundle: Path, text: str | bytes, *options: object) -> tuple[str, str]:
    stdin = text.encode() if isinstance(text, str) else text
    result = run("chat", endless_bundle, "-n", TOKENS, "--threads", 1, *options, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_a_pipe_gets_plain_text_whatever_is_said_of_colours(
    endless_bundle: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert chat(endless_bundle, "the cat\n")[0] == "".join(answers(model, "the cat"))


def test_every_line_of_a_pipe_gets_its_answer(endless_bundle: Path, model: Model) -> None:
    stdout, stderr = chat(endless_bundle, "the cat\n\nand the dog", "--system", "the hen")
    assert stdout == "".join(answers(model, "the cat", "and the dog", system="the hen"))
    assert stdout != "".join(answers(model, "the cat", "and the dog"))
    assert stderr.count("cut off after 8 tokens") == 2


def test_a_message_may_have_several_lines_and_begin_with_a_slash(endless_bundle: Path, model: Model) -> None:
    expected = answers(model, "the cat\nsat", "/reset the mat")
    assert chat(endless_bundle, '"""the cat\nsat"""\n//reset the mat\n')[0] == "".join(expected)
    assert chat(endless_bundle, '"""\nthe cat\nsat\n"""\n')[0] == expected[0]


def test_commands_change_the_conversation(endless_bundle: Path, model: Model, tmp_path: Path) -> None:
    saved = tmp_path / "saved chat.safetensors"
    typed = (
        f"/strategy\nthe cat\n/strategy full\n/save {saved}\nthe dog\n/stats\n/reset\nthe dog\n/load {saved}\nthe dog\n"
    )
    stdout, stderr = chat(endless_bundle, typed + "/help\n/tint\n/quit\nnever answered\n", "--system", "the hen")
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
        "/clear",
        "green",
    )
    for words in said:
        assert words in stderr


def test_a_turn_is_taken_back_and_answered_again(endless_bundle: Path, model: Model) -> None:
    stdout, stderr = chat(endless_bundle, "the cat\nthe dog\n/undo\nthe hen\n/retry\n")
    first, second = answers(model, "the cat", "the dog")
    _, other = answers(model, "the cat", "the hen")
    assert stdout == first + second + other + other  # greedy: the same again
    assert "taken back: the dog" in stderr
    assert "again: the hen" in stderr
    assert "greedy: the same answer again" in stderr


def test_a_sampled_answer_is_another_one_each_time(endless_bundle: Path, model: Model) -> None:
    stdout, stderr = chat(endless_bundle, "the cat\n/retry\n/retry\n", "--temperature", 4, "--seed", 5)
    tries = [
        model.conversation().ask("the cat", max_new_tokens=TOKENS, temperature=4.0, seed=seed).text.lstrip() + "\n"
        for seed in (5, 6, 7)
    ]
    assert len(set(tries)) == 3
    assert stdout == "".join(tries)
    assert "greedy" not in stderr


def test_the_system_message_is_shown_and_changed(endless_bundle: Path, model: Model) -> None:
    stdout, stderr = chat(endless_bundle, "/system\n/system the hen\nthe cat\n/clear\nthe cat\n")
    (answer,) = answers(model, "the cat", system="the hen")
    assert stdout == answer * 2
    assert "system message: none; /system TEXT sets one" in stderr
    assert "system message: the hen" in stderr
    assert "all turns are forgotten, but the system message" in stderr


def test_settings_are_shown_and_changed(endless_bundle: Path, model: Model) -> None:
    changes = ("temperature 0.8", "seed 7", "max-tokens 3", 'logit_bias {"5": 1.5}', "stop END")
    typed = "".join(f"/set {change}\n" for change in changes) + "the cat\n/set\n"
    stdout, stderr = chat(endless_bundle, typed)
    settings: dict[str, Any] = {"temperature": 0.8, "seed": 7, "logit_bias": {5: 1.5}, "stop": "END"}
    assert stdout == model.conversation().ask("the cat", max_new_tokens=3, **settings).text.lstrip() + "\n"
    for line in ("temperature: 0.8", "seed: 7", "max_new_tokens: 3", 'logit_bias: {"5": 1.5}', 'stop: ["END"]'):
        assert stderr.count(line) == 2
    assert "strategy: the bundle's, which is auto" in stderr


def test_saving_says_what_was_written_and_where(endless_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.safetensors"
    _, stderr = chat(endless_bundle, f"the cat\n/save {file}\n/load {file}\n")
    megabytes = f"{file.stat().st_size / 1e6:.1f} MB"
    assert f"saved 2 messages and what was read of them: {file} ({megabytes})" in stderr
    assert f"loaded 2 messages: {file}" in stderr


def test_reset_is_another_name_of_clear(endless_bundle: Path, model: Model) -> None:
    assert chat(endless_bundle, "the cat\n/reset\nthe cat\n")[0] == answers(model, "the cat")[0] * 2


MISTAKES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "an unknown command": (b"/rest\n", ("/rest", "/clear")),
    "an unknown strategy": (b"/strategy guess\n", ("'guess'", "verify")),
    "a file that does not exist": (b"/load nowhere.safetensors\n", ("nowhere.safetensors",)),
    "no file": (b"/save\n", ("/save", "file")),
    "nobody's folder": (b"/save ~nobody-of-this-name/chat\n", ("~nobody-of-this-name/chat",)),
    "statistics of nothing": (b"/stats\n", ("no answer yet",)),
    "nothing to take back": (b"/undo\n", ("no message yet",)),
    "nothing to answer again": (b"/retry\n", ("no message yet",)),
    "an unknown setting": (b"/set temprature 1\n", ("'temprature'", "did you mean 'temperature'")),
    "a neighbour's name of a setting": (b"/set n_predict 9\n", ("'n_predict'", "did you mean 'max_new_tokens'")),
    "a setting out of range": (b"/set temperature -1\n", ("temperature is -1",)),
    "a setting that is no number": (b"/set temperature hot\n", ("temperature is 'hot'",)),
    "an empty stop string": (b'/set stop ""\n', ("stop has an empty string",)),
    "a strategy that needs no chain": (b"/set chain 20\n", ("chain is 20",)),
    "a message without an end": (b'"""the cat\nsat', ('"""', "no end")),
    "no text": (b"caf\xe9\n", ("standard input", "UTF-8")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_pipe_ends_it(name: str, endless_bundle: Path) -> None:
    text, words = MISTAKES[name]
    assert_refused(run("chat", endless_bundle, stdin=text), 2, *words)


def test_a_strategy_that_does_not_suit_the_settings_is_refused(endless_bundle: Path) -> None:
    assert_refused(run("chat", endless_bundle, "--chain", 3, stdin=b"/strategy full\n"), 2, "'full' has no chain")


def test_a_loaded_conversation_overflows_as_the_command_line_says(endless_bundle: Path, tmp_path: Path) -> None:
    saved, long = tmp_path / "chat.safetensors", "the cat sat on the mat. " * 100
    chat(endless_bundle, f"{long}\n/save {saved}\n")
    model = recycle_onnx.load(endless_bundle)
    view = Session(model, model.conversation(overflow="drop_oldest"), GREEDY, View(Console(), False))
    view.take(f"/load {saved}")
    assert view.conversation.overflow == "drop_oldest"
    assert len(view.conversation.messages) == 2


def test_what_drives_a_terminal_is_not_shown() -> None:
    assert printable("a\x1b]52;c;eA==\x07\tb\x9b2J\r\nc\x7f é🙂") == "a]52;c;eA==\tb2J\nc é🙂"


def test_settings_are_checked_before_anything_is_read(endless_bundle: Path) -> None:
    assert_refused(run("chat", endless_bundle, "--temperature", -1, stdin=b""), 2, "temperature is -1")
    assert_refused(run("chat", endless_bundle, "--strategy", "guess", stdin=b""), 2, "'guess'")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals of this kind")
def test_ctrl_c_stops_the_answer_and_not_the_program(endless_bundle: Path) -> None:
    with terminal("chat", endless_bundle, "-n", 90_000, "--threads", 1) as screen:
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
        assert screen.process.wait(PATIENCE) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals of this kind")
def test_recycled_tokens_are_tinted_on_request(endless_bundle: Path) -> None:
    with terminal("chat", endless_bundle, "-n", TOKENS, "--threads", 1, "--strategy", "alternate") as screen:
        screen.wait_for("> $")
        screen.type("the cat\n")
        assert GREEN not in screen.wait_for("cut off")
        screen.type("/tint\n")
        screen.wait_for("are green")
        screen.type("the cat\n")
        assert GREEN in screen.wait_for("cut off")
        screen.type("/quit\n")
        assert screen.process.wait(PATIENCE) == 0
