"""Prompts to measure with: lines of text or of JSON, put through the bundle's chat template where it has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from recycle_onnx.documents import json_lines
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_text
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate, Message
from recycle_onnx.runtime.text import encode

FIELDS = ("messages", "turns", "prompt")
"""Where a line of JSON may have its prompt, in the order in which they are looked for."""


@dataclass(frozen=True)
class Prompt:
    """A list of messages of which the last one is the user's, and is to be answered."""

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """What the user said last."""
        return str(self.messages[-1]["content"])

    def ids(self, folder: Path, tokenizer: Tokenizer) -> list[int]:
        """Return token ids by the chat template of the bundle in `folder`, or of the user's text alone without one.

        Raises:
            InputError: the template refuses the messages, or jinja2 is not installed.
        """
        template = ChatTemplate.find(folder)
        if template.name == PLAIN:
            return encode(tokenizer, self.text)
        return encode(tokenizer, template.render(self.messages), template.special_tokens)


def read_prompts(path: Path, field: str | None = None) -> list[Prompt]:
    """Read a prompt from every line that is not empty: its JSON in a `.jsonl` file, else the line itself.

    The JSON has `messages` (objects with role and content), `turns` (texts, of which the first is taken) or `prompt`
    (a text); `field` names the one that holds the prompt in any of these forms.

    Raises:
        InputError: no such file, not UTF-8, nothing in it, or a line without a prompt, which is named.
    """
    prompts = list(_json_prompts(path, field) if path.suffix == ".jsonl" else _lines(path))
    if not prompts:
        raise InputError(f"{path}: is empty; expected a prompt a line")
    return prompts


def _lines(path: Path) -> Iterator[Prompt]:
    return (_asked(line) for line in read_text(path).splitlines() if line.strip())


def _json_prompts(path: Path, field: str | None) -> Iterator[Prompt]:
    for number, value in json_lines(path, read_text(path).split("\n")):
        names = FIELDS if field is None else (field,)
        values = [value[name] for name in names if name in value] if isinstance(value, dict) else []
        prompt = _prompt(values[0]) if values else None
        if prompt is None:
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise InputError(
                f"{path}, line {number}: no prompt in {' or '.join(map(repr, names))} (found: {known}); "
                "expected a text, a list of turns or of messages, or another --field"
            )
        yield prompt


def _prompt(value: Any) -> Prompt | None:
    """Make a prompt of a text, the first of several turns, or messages up to the user's last; None otherwise."""
    if isinstance(value, str) and value.strip():
        return _asked(value)
    if not isinstance(value, list) or not value:
        return None
    if isinstance(value[0], str):
        return _prompt(value[0])
    if not all(isinstance(m, dict) and {str} == {type(m.get("role")), type(m.get("content"))} for m in value):
        return None
    last = max((place for place, message in enumerate(value) if message["role"] == "user"), default=None)
    return None if last is None else Prompt(tuple(value[: last + 1]))


def _asked(text: str) -> Prompt:
    return Prompt(({"role": "user", "content": text},))
