"""How a base writes text of its own: with a chat template both sides of a conversation, otherwise text after text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.prompts import FIELDS, read_prompts
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate, Message
from recycle_onnx.tokenizer import load_tokenizer

OPENING = 8
"""Tokens of a document that the base is given to go on from."""
QUESTION_TEMPERATURE = 0.9
"""How freely a chat model writes the user's side: at 1 a small model's questions often make no sense."""


@dataclass(frozen=True)
class Turn:
    """A speaker of a text: where the turn ends, what follows then, and how freely the base writes.

    Of texts that are written together, number n takes temperature n of these, and begins again behind the last one.
    """

    ends: frozenset[int]
    then: tuple[int, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True)
class Opening:
    """The tokens that a text begins with, and the number of the turn that they leave off in."""

    ids: tuple[int, ...]
    turn: int


@dataclass(frozen=True)
class Script:
    """Turns that take each other's place in order; a text from nothing begins with `start`."""

    start: Opening
    turns: tuple[Turn, ...]
    chat: ChatTemplate | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, folder: Path, temperature: float) -> Script:
        """The script for the base in `folder`; texts are sampled at `temperature`, every other answer at half of it."""
        tokenizer = load_tokenizer(folder)
        template = ChatTemplate.find(folder)
        if template.name != PLAIN and (turns := _conversation(template, tokenizer, temperature)):
            start, question, answer = turns
            return cls(Opening(start, 0), (question, answer), template, tokenizer)
        ends = _ends(folder)
        begin = (_begin(folder, ends),)
        return cls(Opening(begin, 0), (Turn(frozenset(ends), begin, (temperature,)),), None, tokenizer)

    def openings(self, paths: Sequence[Path], field: str) -> list[Opening]:
        """What texts begin with: prompts and chats in JSON lines (`prompts.py`) whole, documents for a few tokens.

        Raises:
            InputError: a chat for a base without a chat template, or no document is long enough.
        """
        openings: list[Opening] = []
        for path in paths:
            if holds_prompts(path):
                openings += [self._of_chat(path, prompt.messages) for prompt in read_prompts(path)]
            else:
                rows = (self.tokenizer.encode(document).ids[:OPENING] for document in read_documents([path], field))
                openings += [Opening(tuple(row), len(self.turns) - 1) for row in rows if len(row) == OPENING]
        if not openings:
            raise InputError(f"{', '.join(map(str, paths))}: no document has {OPENING} tokens to go on from")
        return openings

    def _of_chat(self, path: Path, messages: Sequence[Message]) -> Opening:
        if self.chat is None:
            raise InputError(f"{path}: holds chats, but the base has no chat template; give text to go on from")
        ids = self.tokenizer.encode(self.chat.render(messages), add_special_tokens=False).ids
        return Opening(tuple(ids), len(self.turns) - 1)


def _conversation(
    template: ChatTemplate, tokenizer: Tokenizer, temperature: float
) -> tuple[tuple[int, ...], Turn, Turn] | None:
    """What stands before a question, between it and its answer, and before the next one, as the template has it.

    None where a turn does not end with a token of its own: then nothing says where the base has ended it.
    """
    marks = [f"qz{number}zq" for number in range(3)]
    roles = ("user", "assistant", "user")
    text = template.render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
    pieces = []
    for mark in marks:
        before, mark_there, text = text.partition(mark)
        if not mark_there:
            return None
        pieces.append(tuple(tokenizer.encode(before, add_special_tokens=False).ids))
    start, to_answer, to_question = pieces
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if not (to_answer and to_question and {to_answer[0], to_question[0]} <= special):
        return None
    question = Turn(frozenset(to_answer[:1]), to_answer[1:], (QUESTION_TEMPERATURE,))
    cool = (temperature, temperature / 2)  # answers are read greedily as well
    return start, question, Turn(frozenset(to_question[:1]), to_question[1:], cool)


def holds_prompts(path: Path) -> bool:
    """Whether a file of JSON lines has prompts or chats rather than documents, by its first line."""
    if path.suffix != ".jsonl":
        return False
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False  # `read_documents` says what is wrong
    return isinstance(first, dict) and any(name in first for name in FIELDS)


def _ends(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists() and (ids := read_json(folder / name).get("eos_token_id")) is not None:
            return list(ids) if isinstance(ids, list) else [ids]
    return []


def _begin(folder: Path, ends: Sequence[int]) -> int:
    """The token that a text begins with: BOS, or the one that ends the text before."""
    configs = (
        read_json(folder / name) for name in ("generation_config.json", "config.json") if (folder / name).exists()
    )
    named = (config.get("bos_token_id") for config in configs)
    return next((token for token in chain(named, ends) if isinstance(token, int)), 0)
