"""Structured output: text that a JSON schema, a regular expression or a grammar describes.

The one file that knows llguidance (PyPI `llguidance`, the extra `structured`): its matcher reads the text token by
token and says which tokens may follow. To the strategies it is one more processor with a state, so that proposals are
masked as they are made and again where they are checked, and the matcher is rolled back with what is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from recycle_onnx.errors import InputError, TextError
from recycle_onnx.extras import install_command
from recycle_onnx.runtime.decoding.processors import FORBIDDEN, Floats, Ids
from recycle_onnx.runtime.ort.native import at_work

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ONE_SPACE = {"whitespace_pattern": "[ ]?"}
"""Between the parts of a JSON text: without a limit a model may go on with white space for ever (as in Outlines)."""
LARK = "%llguidance"
"""Begins a grammar that is Lark for certain: others are GBNF where `::=` is anywhere in them."""
WORD = 32
"""Bits in a word of llguidance's masks, which are allocated in whole words."""
LONGEST_MESSAGE = 300
"""Characters of llguidance's reasons that are shown: they quote the grammar, which may be long."""


@dataclass(frozen=True)
class JsonSchema:
    """A JSON text that `schema` describes (json-schema.org), with at most one space between its parts.

    Raises:
        InputError: not a JSON object.
    """

    schema: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.schema, Mapping):
            raise InputError(f"the JSON schema is {_short(self.schema)}; expected an object")
        self.text()

    def text(self) -> str:
        """Return the schema as JSON."""
        try:
            return json.dumps(dict(self.schema), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the JSON schema is no JSON value ({error})") from error

    def __str__(self) -> str:
        return "the JSON schema"


@dataclass(frozen=True)
class Regex:
    """A text that `pattern` matches from its beginning to its end (syntax of Rust's regex crate, no look-around).

    Raises:
        InputError: not a string.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise InputError(f"the regular expression is {_short(self.pattern)}; expected a string")

    def __str__(self) -> str:
        return f"the regular expression {_short(self.pattern)}"


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free grammar, in llguidance's kind of Lark (`start: …`) or in GBNF (`root ::= …`).

    Special tokens that it names are left out of the text like any other, but for those in `shown`.

    Raises:
        InputError: not a string.
    """

    source: str
    shown: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise InputError(f"the grammar is {_short(self.source)}; expected a string")

    def __str__(self) -> str:
        return "the grammar"


Constraint = JsonSchema | Regex | Grammar


class Constraints:
    """A maker of constraints for one model, which keeps what takes long: a trie, and the latest grammars."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._trie = lru_cache(maxsize=4)(self._make_trie)
        self._matcher = lru_cache(maxsize=16)(self._make_matcher)

    def prepare(self, constraint: Constraint, stop_ids: frozenset[int]) -> Constrained:
        """Make a processor of a constraint; `stop_ids` are allowed where the text is complete, and nowhere else.

        Raises:
            InputError: llguidance is not installed, the constraint is not one it can follow, the tokenizer is not one
                whose tokens are known as bytes, or no token can end the text.
        """
        if not stop_ids:
            raise InputError("stop-ids is empty; expected a token that ends the text where its constraint is complete")
        with at_work():
            matcher = self._matcher(_grammar(constraint), stop_ids)
        if matcher.is_error():
            raise InputError(f"{constraint} is not one to follow: {_one_line(matcher.get_error())}")
        return Constrained(matcher, self._size, sorted(stop_ids))

    @cached_property
    def _size(self) -> int:
        """Of the trie: the model's ids and the tokenizer's, of which either may have some that the other lacks."""
        return max(self._vocab_size, 1 + max(self._tokenizer.get_vocab().values(), default=0))

    def _make_trie(self, stop_ids: frozenset[int]) -> LLTokenizer:
        try:
            trie: LLTokenizer = _library().LLTokenizer(
                self._tokenizer.to_str(), n_vocab=self._size, eos_token=sorted(stop_ids)
            )
            return trie
        except ValueError as error:
            raise InputError(f"llguidance cannot read the tokenizer ({_one_line(str(error))})") from error

    def _make_matcher(self, grammar: str, stop_ids: frozenset[int]) -> LLMatcher:
        library = _library()
        limits = library.LLParserLimits(verbose_errors=False)
        matcher: LLMatcher = library.LLMatcher(self._trie(stop_ids), grammar, log_level=0, limits=limits)
        return matcher


@dataclass(frozen=True)
class Constrained:
    """A stateful processor: every text starts with a copy of `matcher`, which has read nothing."""

    matcher: LLMatcher
    trie_size: int
    stop_ids: list[int]

    def start(self, prompt: Ids) -> Matching:
        """Start the follower of one new text; the prompt is not a part of it."""
        return Matching(self.matcher, self.trie_size, self.stop_ids)

    def try_first_token(self) -> None:
        """Find out once what a text may begin with, which for some constraints takes longer than all before."""
        nothing = np.empty(0, np.int64)
        self.start(nothing)(nothing, np.zeros(self.trie_size, np.float32))


class Matching:
    """A follower of one text, with its own copy of a matcher that has read nothing.

    The matcher's mask has all ids of the trie; of these the first ones are the model's logits.
    """

    def __init__(self, matcher: LLMatcher, trie_size: int, stop_ids: list[int]) -> None:
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        self._unread, self._matcher, self._read = matcher, matcher.deep_copy(), list[int]()
        self._fill, self._stop_ids = fill_next_token_bitmask, stop_ids
        self._bits = allocate_token_bitmask(1, -(-trie_size // WORD) * WORD)

    def __call__(self, ids: Ids, logits: Floats) -> Floats:
        """Forbid what cannot follow.

        Raises:
            TextError: the text has become too complex for llguidance's limits.
        """
        matcher = self._sound()
        self._fill(matcher, self._bits)
        self._expect(not matcher.is_error())
        allowed = np.unpackbits(self._bits.view(np.uint8)[0], count=len(logits), bitorder="little")
        logits[allowed == 0] = FORBIDDEN
        if not matcher.is_accepting():
            logits[self._stop_ids] = FORBIDDEN  # an ordinary token that ends the text does so wherever it stands
        return logits

    def advance(self, token: int) -> None:
        self._expect(self._sound().consume_token(token))
        self._read.append(token)

    def rollback(self, count: int) -> None:
        del self._read[len(self._read) - count :]
        if not self._matcher.is_error():
            self._expect(self._matcher.rollback(count))

    def fast_forward(self) -> list[int]:
        """Return what the constraint spells out, such as a property's name, cut into tokens as the tokenizer does."""
        tokens: list[int] = self._sound().deep_copy().compute_ff_tokens()  # none where that goes beyond the limits
        return tokens

    def fitting(self, tokens: list[int]) -> int:
        count: int = self._sound().deep_copy().validate_tokens(tokens)
        return count

    def _sound(self) -> LLMatcher:
        """Return the matcher; after an error, which may lie in a proposal, one that has read the text anew."""
        if self._matcher.is_error():
            self._matcher = self._unread.deep_copy()
            self._expect(self._matcher.consume_tokens(self._read))
        return self._matcher

    def _expect(self, fine: bool) -> None:
        if not fine:
            raise TextError(f"llguidance cannot follow the text: {_one_line(self._matcher.get_error())}")


def _library() -> ModuleType:
    try:
        return import_module("llguidance")
    except ModuleNotFoundError as error:
        raise InputError(
            f"structured output needs llguidance, which is not installed; try: {install_command('structured')}"
        ) from error


def _grammar(constraint: Constraint) -> str:
    """Return the constraint in llguidance's own form; whether it makes sense shows when a matcher is made of it."""
    library = _library()
    try:
        if isinstance(constraint, JsonSchema):
            return str(library.LLMatcher.grammar_from_json_schema(constraint.text(), overrides=ONE_SPACE))
        if isinstance(constraint, Regex):
            return str(library.LLMatcher.grammar_from_regex(constraint.pattern))
        kind = "lark" if constraint.source.startswith(LARK) else "grammar"  # which may also be GBNF
        return str(library.grammar_from(kind, constraint.source))
    except ValueError as error:
        raise InputError(f"{constraint} is not one to follow: {_one_line(str(error))}") from error


def _one_line(message: str) -> str:
    """Return a message without the lines that quote and point, which make no sense side by side."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line.strip("^") and not line.partition("|")[0].strip().isdigit()]
    return _cut(" ".join(kept))


def _short(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
