"""How a base writes text of its own: with a chat template both sides of a conversation, otherwise text after text."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.documents import read_documents
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.prompts import FIELDS, read_prompts
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate, Message
from recycle_onnx.stop_ids import stop_ids
from recycle_onnx.tokenizer import load_tokenizer

LIKELIEST = 50
"""Tokens that a sample is drawn from. A small model's unlikelier ones derail a text, and the rest of it with them."""
OPENING = 8
"""Tokens of a document that the base is given to go on from."""
QUESTION_TEMPERATURE = 0.9
"""How freely a chat model writes the user's side: at 1 a small model's questions often make no sense."""
QUESTIONS = Path(__file__).with_name("questions.txt")
"""Beginnings of questions, one in a line, with \\n for a line's end; the base writes the rest of them.

Left alone a chat model asks few kinds of questions. SmolLM2's module was right on 55 % of answers to those, and on
34 % of answers to MT-bench, so half of the texts begin with one of these.
"""


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


@dataclass
class Writing:
    """A text that is being written, number `number` of those that are written together.

    The tokens `waiting` stand before the next one that the base says, and it is the turn of speaker `turn`.
    """

    turns: Sequence[Turn]
    number: int
    waiting: deque[int]
    turn: int

    @property
    def temperature(self) -> float:
        """How freely the next token is sampled."""
        temperatures = self.turns[self.turn].temperatures
        return temperatures[self.number % len(temperatures)]

    def say(self, token: int) -> int:
        """Let the base say a token, and give it; the end of a turn begins the next one."""
        turn = self.turns[self.turn]
        if token in turn.ends:
            self.waiting.extend(turn.then)
            self.turn = (self.turn + 1) % len(self.turns)
        return token


@dataclass(frozen=True)
class Script:
    """The turns of a text in order; texts from nothing begin with one after the other of `starts`."""

    starts: tuple[Opening, ...]
    turns: tuple[Turn, ...]
    chat: ChatTemplate | None
    tokenizer: Tokenizer

    @classmethod
    def of(cls, folder: Path, temperature: float) -> Script:
        """Make the script for the base in `folder`; texts are sampled at `temperature`, half of them colder."""
        tokenizer = load_tokenizer(folder)
        template = ChatTemplate.find(folder)
        if template.name != PLAIN and (turns := _conversation(template, tokenizer, temperature)):
            start, question, answer = turns
            return cls(_starts(start, tokenizer), (question, answer), template, tokenizer)
        ends = list(stop_ids(folder, tokenizer))
        begin = (_begin(folder, ends),)
        return cls((Opening(begin, 0),), (Turn(frozenset(ends), begin, (temperature,)),), None, tokenizer)

    def openings(self, paths: Sequence[Path], field: str) -> list[Opening]:
        """Return what texts begin with: prompts and chats in JSON lines whole, documents for a few tokens.

        Raises:
            InputError: a chat for a base without a chat template, or no document is long enough.
        """
        openings: list[Opening] = []
        for path in paths:
            if holds_prompts(path):
                openings += [self._of_chat(path, prompt.messages) for prompt in read_prompts(path)]
            else:
                openings += self.going_on(read_documents([path], field))
        if not openings:
            raise InputError(f"{', '.join(map(str, paths))}: no document has {OPENING} tokens to go on from")
        return openings

    def going_on(self, documents: Iterable[str]) -> list[Opening]:
        """Return an opening for each document that is long enough; the base, which answers last, goes on from it."""
        rows = (self.tokenizer.encode(document).ids[:OPENING] for document in documents)
        return [Opening(tuple(row), len(self.turns) - 1) for row in rows if len(row) == OPENING]

    def _of_chat(self, path: Path, messages: Sequence[Message]) -> Opening:
        if self.chat is None:
            raise InputError(f"{path}: holds chats, but the base has no chat template; give text to go on from")
        ids = self.tokenizer.encode(self.chat.render(messages), add_special_tokens=False).ids
        return Opening(tuple(ids), len(self.turns) - 1)


def _starts(start: tuple[int, ...], tokenizer: Tokenizer) -> tuple[Opening, ...]:
    """Return as many openings in which the base asks what it likes as there are with a question begun for it."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    begun = (tokenizer.encode(line.replace("\\n", "\n"), add_special_tokens=False).ids for line in lines)
    return (Opening(start, 0),) * len(lines) + tuple(Opening((*start, *ids), 0) for ids in begun)


def _conversation(
    template: ChatTemplate, tokenizer: Tokenizer, temperature: float
) -> tuple[tuple[int, ...], Turn, Turn] | None:
    """Return the text before a question, between it and its answer, and before the next, by the template.

    None where a turn does not end with a token of its own: then nothing says where the base has ended it.
    """
    frames = template.frames("user", "assistant", "user")
    if frames is None:
        return None
    start, to_answer, to_question = (tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in frames)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if not (to_answer and to_question and {to_answer[0], to_question[0]} <= special):
        return None
    question = Turn(frozenset(to_answer[:1]), to_answer[1:], (QUESTION_TEMPERATURE,))
    cool = (temperature, temperature / 2)  # answers are read greedily as well
    return start, question, Turn(frozenset(to_question[:1]), to_question[1:], cool)


def holds_prompts(path: Path) -> bool:
    """Tell whether a file of JSON lines has prompts or chats rather than documents, by its first line."""
    if path.suffix != ".jsonl":
        return False
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False  # `read_documents` says what is wrong
    return isinstance(first, dict) and any(name in first for name in FIELDS)


def _begin(folder: Path, ends: Sequence[int]) -> int:
    """Return the token that a text begins with: BOS, or the one that ends the text before."""
    configs = (
        read_json(folder / name) for name in ("generation_config.json", "config.json") if (folder / name).exists()
    )
    named = (config.get("bos_token_id") for config in configs)
    return next((token for token in chain(named, ends) if isinstance(token, int)), 0)
