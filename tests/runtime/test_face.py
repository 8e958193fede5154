"""The package's face: what the top level has, and a model as a Python developer would guess it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.command import assert_refused, run

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template of its own."""
    folder = tmp_path_factory.mktemp("face")
    base = tiny.write_base(folder / "base", tiny.tiny_config(context_length=200))
    (base / "chat_template.jinja").write_text(TEMPLATE)
    export(base, folder / "talker")
    return folder / "talker"


@pytest.fixture
def chat_model(chat_bundle: Path) -> Model:
    return recycle_onnx.load(chat_bundle, threads=1)


def test_every_name_of_the_top_level_is_there() -> None:
    for name in recycle_onnx.__all__:
        assert getattr(recycle_onnx, name).__name__ == name
    assert sorted(dir(recycle_onnx)) == sorted([*recycle_onnx.__all__, "__version__"])
    assert recycle_onnx.RecycleModel is recycle_onnx.Model
    missing: Any = recycle_onnx
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        _ = missing.Modell


def test_a_model_says_what_it_is(sample_model: Model, chat_model: Model, tiny_bundle: Path) -> None:
    context = sample_model.context_length
    assert repr(sample_model) == f"<Model 'bundle': fp32, trained module, context of {context} tokens, on cpu>"
    assert repr(chat_model) == "<Model 'talker': fp32, no module, context of 200 tokens, on cpu>"
    assert "untrained module" in repr(recycle_onnx.load(tiny_bundle, threads=1))
    assert (chat_model.name, chat_model.context_length, chat_model.module_trained) == ("talker", 200, False)


def test_what_a_program_holds_says_what_it_is(chat_model: Model) -> None:
    chat = chat_model.conversation(system="You are a cat.")
    assert repr(chat) == "<Conversation with 'talker': 1 message, 0 tokens read, template 'default'>"
    answer = chat.send("the cat", max_new_tokens=2)
    assert repr(answer) == "<Generation '' (auto · 0 tokens · 0.0 tokens/s)>"
    text = answer.finish().text
    assert repr(answer).startswith(f"<Generation {text!r} (auto · 2 tokens · ")
    read = len(chat.decoder.tokens.full)
    assert repr(chat) == f"<Conversation with 'talker': 3 messages, {read} tokens read, template 'default'>"
    assert repr(chat.decoder) == f"<Decoder: {read} tokens read>"
    assert repr(chat_model.bundle) == "<Bundle 'talker': fp32, no module>"
    assert len(repr(chat.template)) < 100


def test_texts_become_tokens_and_come_back(chat_model: Model) -> None:
    ids = chat_model.encode("the cat sat")
    assert ids[0] == 0
    assert chat_model.decode(ids) == "the cat sat"
    assert chat_model.decode(np.array(ids)) == "the cat sat"
    assert chat_model.decode(ids, skip_special_tokens=False) == f"{tiny.END}the cat sat"
    assert chat_model.count_tokens("the cat sat") == len(ids)
    with pytest.raises(InputError, match="token id 300 is outside the vocabulary of 300"):
        chat_model.decode([300])
    with pytest.raises(InputError, match=r"the ids are \['the'\]; expected token ids"):
        chat_model.decode(["the"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="the text is 5; expected a string"):
        chat_model.encode(5)  # type: ignore[arg-type]


def test_messages_are_counted_as_the_template_writes_them(chat_model: Model) -> None:
    result = chat_model.chat(MESSAGES, max_new_tokens=1)
    assert chat_model.count_tokens(MESSAGES) == result.stats.prompt_tokens
    with pytest.raises(InputError, match="the messages are 5; expected a list"):
        chat_model.count_tokens(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the messages are 'the cat'; expected a list"):
        chat_model.conversation(messages="the cat")  # type: ignore[arg-type]


def test_one_call_answers_messages(chat_model: Model) -> None:
    result = chat_model.chat(MESSAGES, max_new_tokens=8)
    chat = chat_model.conversation(system="be kind")
    assert result.tokens == chat.ask("the cat", max_tokens=8).tokens
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == result.text
    assert chat_model.chat("the cat", max_new_tokens=8).tokens == chat_model.chat(MESSAGES[1:], max_new_tokens=8).tokens
    plain = chat_model.chat("the cat", max_new_tokens=8, template="plain")
    assert plain.tokens == chat_model.conversation(template="plain").ask("the cat", max_new_tokens=8).tokens


def test_the_last_message_is_answered_again(chat_model: Model) -> None:
    chat = chat_model.conversation()
    first = chat.ask("the cat", max_new_tokens=8)
    chat.messages = chat.messages[:-1]
    assert chat.answer(max_new_tokens=8).finish().tokens == first.tokens
    assert len(chat.messages) == 2


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are no messages; expected one to answer"),
        (5, "the messages are 5; expected a list of objects with role and content"),
        ([*MESSAGES, {"role": "assistant", "content": "sat"}], "the last message is the assistant's"),
        ([{"role": "user"}], "a message has content None"),
        (["the cat"], "a message is 'the cat'; expected an object with role and content"),
        (MESSAGES[0], "a message is 'role'; expected an object with role and content"),
        ([{"role": "user", "content": "the cat " * 200}], "leaves no room for an answer"),
    ],
    ids=str,
)
def test_messages_that_cannot_be_answered_are_refused(messages: Any, words: str, chat_model: Model) -> None:
    with pytest.raises(InputError, match=words):
        chat_model.chat(messages)


def test_unknown_settings_of_a_chat_are_refused_with_the_right_name(chat_model: Model) -> None:
    misled: Any = chat_model
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        misled.chat("the cat", temprature=0.5)
    with pytest.raises(InputError, match="did you mean 'max_new_tokens'"):
        misled.conversation().ask("the cat", max_length=3)


def test_a_result_prints_its_text_and_a_line_of_figures(sample_model: Model) -> None:
    result = sample_model.generate("One day, a cat", max_new_tokens=12, strategy="verify")
    text, figures = str(result).rsplit("\n", 1)
    assert text == result.text
    assert figures == f"({result.figures})"
    assert result.figures.startswith("verify · 12 tokens · ")
    assert result.figures.endswith("% accepted")
    assert repr(result) == f"<Result {result.text!r} ({result.figures})>"
    assert str(result.tokens) not in repr(result)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_chat_model_says_once_that_it_continues_raw_text(
    chat_model: Model, sample_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        chat_model.generate("the cat", max_new_tokens=2)
    (said,) = warnings(caplog)
    assert said.startswith("talker is a chat model")
    assert "model.chat(" in said
    caplog.clear()
    sample_model.generate("One day", max_new_tokens=2)  # has no template
    assert not warnings(caplog)


def test_what_is_no_raw_text_is_not_told_of(chat_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    chat_model.chat("the cat", max_new_tokens=2)
    chat_model.generate(chat_model.encode("the cat"), max_new_tokens=2)
    chat_model.generate(f"{tiny.END}the cat", max_new_tokens=2)  # somebody's own template
    assert not warnings(caplog)


def test_the_command_line_has_chat(chat_bundle: Path, chat_model: Model) -> None:
    options = ("-n", 6, "--threads", 1)
    expected = chat_model.chat("the cat", max_new_tokens=6)
    shown = run("generate", chat_bundle, "the cat", "--chat", *options)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout == expected.text + "\n"
    assert "is a chat model" not in shown.stderr
    as_json = json.loads(run("generate", chat_bundle, "the cat", "--chat", "--json", *options).stdout)
    assert as_json["tokens"] == expected.tokens
    assert_refused(run("generate", chat_bundle, "", "--chat"), 2, "the prompt is empty")


def test_the_command_line_says_how_to_chat(chat_bundle: Path) -> None:
    code = f"from recycle_onnx.cli import main; main(['generate', {str(chat_bundle)!r}, 'the cat', '-n', '2'])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    (line,) = [line for line in shown.stderr.splitlines() if "is a chat model" in line]
    assert "--chat on the command line" in line


def test_a_damaged_template_does_not_keep_a_text_from_being_continued(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    config = read_json(base / "tokenizer_config.json")
    export(base, tmp_path / "bundle")
    write_json(tmp_path / "bundle" / "tokenizer_config.json", {**config, "chat_template": 5})
    model = recycle_onnx.load(tmp_path / "bundle", threads=1)
    assert model.generate("the cat", max_new_tokens=2).tokens
    with pytest.raises(InputError, match="chat_template is 5"):
        model.chat("the cat")
