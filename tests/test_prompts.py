"""Prompts come from lines of text or JSON, and go through the chat template where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.prompts import read_prompts
from recycle_onnx.tokenizer import load_tokenizer
from tests.conftest import SAMPLE

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    return path


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One day\n\n{}\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts.txt")] == ["One day", "{}"]


def test_json_lines_have_a_text_turns_or_messages(tmp_path: Path) -> None:
    system, user, answer = (
        {"role": role, "content": text}
        for role, text in (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
    )
    path = write(
        tmp_path / "prompts.jsonl",
        {"prompt": "One day", "task_id": 3},
        {"turns": ["Who?", "And why?"]},
        {"messages": [system, user, answer], "prompt": "not this"},
    )
    found = read_prompts(path)
    assert [prompt.text for prompt in found] == ["One day", "Who?", "Hi"]
    assert found[2].messages == (system, user)


def test_a_field_of_another_name_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", {"question": "Who?", "prompt": "no"}, {"question": ["Why?"]})
    assert [prompt.text for prompt in read_prompts(path, "question")] == ["Who?", "Why?"]
    with pytest.raises(InputError, match=r"line 1: no prompt in 'text' \(found: question, prompt\).*--field"):
        read_prompts(path, "text")


@pytest.mark.parametrize(
    "value",
    [{"text": "x"}, {"prompt": " "}, {"prompt": 3}, {"turns": []}, {"turns": [3]}, ["x"],
     {"messages": [{"role": "user"}]}, {"messages": [{"role": "system", "content": "x"}]}],
)  # fmt: skip
def test_a_line_without_a_prompt_is_named(value: object, tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", {"prompt": "One day"}, value)
    with pytest.raises(InputError, match=r"prompts.jsonl, line 3: no prompt in"):
        read_prompts(path)


def test_files_that_hold_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(InputError, match="is empty"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="line 1: not JSON"):
        read_prompts(tmp_path / "broken.jsonl")
    with pytest.raises(InputError, match="no such text file"):
        read_prompts(tmp_path / "none.jsonl")


def test_without_a_chat_template_the_text_itself_is_the_prompt(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SAMPLE)
    [prompt] = read_prompts(write(tmp_path / "prompts.jsonl", {"prompt": "One day, a fox"}))
    assert prompt.ids(SAMPLE, tokenizer) == tokenizer.encode("One day, a fox").ids
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    expected = tokenizer.encode("<user>One day, a fox<assistant>", add_special_tokens=False).ids
    assert prompt.ids(tmp_path, tokenizer) == expected
