"""Thoughts of earlier answers, as a chat template takes them."""

from __future__ import annotations

from collections.abc import Sequence

from recycle_onnx.runtime.chat_template import Message
from recycle_onnx.runtime.tools.grammar import THOUGHT

FIELD = "reasoning_content"
"""What newer templates, and other servers, call the thought of an assistant's message."""


def with_thoughts(messages: Sequence[Message], template: str) -> list[Message]:
    """Return messages whose thoughts are where a template, in jinja, expects them.

    That is a field of their own, or the beginning of the text; a template without thoughts gets none.
    """
    return list(messages) if FIELD in template else [_in_text(message, template) for message in messages]


def _in_text(message: Message, template: str) -> Message:
    thought = message.get(FIELD)
    plain = {name: value for name, value in message.items() if name != FIELD}
    begin, end = THOUGHT
    if not thought or end not in template:
        return plain
    return {**plain, "content": f"{begin}\n{thought}\n{end}\n\n{message.get('content') or ''}"}
