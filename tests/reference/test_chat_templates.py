"""Chat templates against transformers' apply_chat_template: texts and token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.tokenizer import load_tokenizer
from tests.helpers import tiny
from tests.helpers.templates import TEMPLATES

CHATS = {
    "one turn": [{"role": "user", "content": "the cat sat"}],
    "system": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "a <b> & 'c' \"d\" é \U0001f98a"},
    ],
    "three turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n ran  \n"},
        {"role": "user", "content": "{{ bos_token }} {% raise %}\n\n"},
        {"role": "assistant", "content": "<|endoftext|> is a special token"},
        {"role": "user", "content": "and then?", "name": "Ann"},
    ],
}


@pytest.fixture(params=["config", "list", "file"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def folder(path: Path, template: str, place: str) -> Path:
    """A tokenizer whose template lies where models have theirs."""
    tiny.write_text_files(path)
    config = read_json(path / "tokenizer_config.json") | {
        "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>"}
    }
    if place == "config":
        config["chat_template"] = template
    elif place == "list":
        config["chat_template"] = [
            {"name": "tool_use", "template": "another one"},
            {"name": "default", "template": template},
        ]
    else:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
        config["chat_template"] = "an older one"
    write_json(path / "tokenizer_config.json", config)
    return path


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_and_tokens_are_those_of_transformers(
    name: str, chat: list[dict[str, Any]], place: str, tmp_path: Path
) -> None:
    folder(tmp_path, TEMPLATES[name], place)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatTemplate.find(tmp_path)
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ours.render(chat) == text
    encoded = load_tokenizer(tmp_path).encode(text, add_special_tokens=ours.special_tokens).ids
    assert encoded == theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert encoded.count(0) == text.count("<|endoftext|>")
    altered = [{**chat[0], "content": chat[0]["content"] + "."}, *chat[1:]]
    assert ours.render(altered) != text


def test_variables_reach_the_template(tmp_path: Path) -> None:
    folder(tmp_path, TEMPLATES["chatml"], "config")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = CHATS["one turn"]
    expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert "<think>" in expected
    assert ChatTemplate.find(tmp_path, variables={"enable_thinking": False}).render(chat) == expected
    assert ChatTemplate.find(tmp_path).render(chat) != expected


def test_what_transformers_refuses_we_refuse(tmp_path: Path) -> None:
    import jinja2

    from recycle_onnx.errors import InputError

    escapes = [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(**{'__class__': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__dict__ = 1 %}",
        "{{ raise_exception('no') }}",
        "{{ range(10000000) | list }}",
    ]
    for number, template in enumerate(escapes):
        path = tmp_path / str(number)
        path.mkdir()
        folder(path, template, "config")
        with pytest.raises((jinja2.TemplateError, OverflowError)):
            AutoTokenizer.from_pretrained(path).apply_chat_template(CHATS["one turn"], tokenize=False)
        with pytest.raises(InputError, match="refuses these messages"):
            ChatTemplate.find(path).render(CHATS["one turn"])
