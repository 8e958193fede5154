"""Token ids to text as they come: whole characters only, and stop strings."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from operator import index

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.ort.native import at_work

CONTEXT = 8
"""Prompt tokens that are decoded along, so that the first new word keeps its leading space."""
LONG_TEXT = 8192
"""Characters that take milliseconds to encode."""
LONG_TOKEN = 16
"""Characters of a token that is longer than most."""
EDGE = 16
"""Tokens at the end of a piece that might come otherwise, or not at all, in the whole."""
LONGEST_CHARACTER = 4
"""Bytes of one in UTF-8."""
INCOMPLETE = "\ufffd"
"""What bytes that form no character are shown as; a model may also write it."""
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
"""Bytes that byte-level tokenizers write as the character of the same number."""
ALPHABET = {
    chr(byte if byte in PRINTABLE else 256 + sum(other not in PRINTABLE for other in range(byte))): byte
    for byte in range(256)
}
"""The characters for bytes in which byte-level tokenizers spell their tokens."""


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool = True, context: int | None = None) -> list[int]:
    """Return the token ids of a text, with the special tokens that the tokenizer adds to a prompt, or without.

    Where `context` is given and the text's beginning alone has more tokens, that is all that is read: megabytes would
    take gigabytes.

    Raises:
        InputError: half a character, which JSON's escapes and undecodable bytes make of bad input.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has {text[error.start]!r} as character {error.start}, half of one; expected valid Unicode"
        ) from error
    if context is not None and len(text) > LONG_TOKEN * context:
        beginning = _ids(tokenizer, text[: LONG_TOKEN * context], add_special_tokens)[:-EDGE]
        if len(beginning) > context:
            return beginning
    return _ids(tokenizer, text, add_special_tokens)


def beginning(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """Return the token ids of a text, or of as much of its beginning as leaves `most` with all special tokens.

    Raises:
        InputError: half a character.
    """
    ids = encode(tokenizer, text, context=most)
    if len(ids) <= most:
        return ids
    with at_work():
        encoding = tokenizer.encode(text[: LONG_TOKEN * most], add_special_tokens=False)
        encoding.truncate(most - tokenizer.num_special_tokens_to_add(is_pair=False))
        return list(tokenizer.post_process(encoding).ids)


def as_ids(prompt: Sequence[int], named: str = "the prompt is", expected: str = "a text, or token ids") -> list[int]:
    """Convert whatever holds integers, an array for instance, to a list of them; an error calls it as `named`.

    Raises:
        InputError: anything else.
    """
    try:
        if isinstance(prompt, bytes | bytearray):
            raise TypeError
        return [index(token) for token in prompt]
    except TypeError as error:
        raise InputError(f"{named} {prompt!r:.100}; expected {expected}") from error


def count(ids: list[int], context: int) -> str:
    """Say how many tokens there are, for an error: of far too many perhaps only the beginning was read."""
    return f"{'at least ' if len(ids) > 2 * context else ''}{len(ids)} tokens"


def _ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    with at_work():
        if len(text) < LONG_TEXT:
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        # Of the two only this one lets other threads run meanwhile.
        return list(tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids)


class TextStream:
    """A decoder of new tokens one by one; a character of several tokens comes with its last one.

    (`tokenizers`' own DecodeStream raises on ids that form no valid UTF-8, which a model may well produce.)
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], shown: frozenset[int] = frozenset()) -> None:
        """Begin after `prompt`; of special tokens those in `shown` are text, and no others."""
        self._tokenizer = tokenizer
        self._hidden = special_ids(tokenizer) - shown if shown else None  # None: tokenizers leaves out its own
        self._ids = self._end(prompt)  # the end of the text, as far back as it decides how new tokens are written
        self._shown = len(self._ids)  # how many of them are in the text that was given out
        self._starts = [0]
        """Where characters begin, as far as is known: to decode from elsewhere might spoil what follows, since
        tokens that stand for single bytes become text together or not at all (tokenizers' ByteFallback)."""

    def push(self, token: int) -> str:
        """Return the text that became certain with this token; often all of it, sometimes none."""
        self._ids.append(token)
        whole = self._decode(self._ids)
        if whole.endswith(INCOMPLETE) and self._awaits_bytes():
            return ""
        text = self._take(whole)
        # Some tokens stay as context: decoders may treat the first one of a text differently.
        self._starts.append(self._shown)
        begin = max((start for start in self._starts if start <= self._shown - CONTEXT), default=0)
        self._ids = self._ids[begin:]
        self._starts = [start - begin for start in self._starts if start >= begin]
        self._shown -= begin
        return text

    def flush(self) -> str:
        """Return what is left when no more tokens come: bytes that form no character, as U+FFFD."""
        return self._take(self._decode(self._ids))

    def _awaits_bytes(self) -> bool:
        """Tell whether the tokens not shown yet end within a character; if not, U+FFFD is what they say."""
        state = str(self._tokenizer.decoder.__getstate__()) if self._tokenizer.decoder else ""
        pending = (token for token in self._ids[self._shown :] if self._decode([token]))  # special ones are no text
        texts = (self._tokenizer.id_to_token(token) or "" for token in pending)
        decoder = getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(_spelled(text, "ByteLevel" in state, "ByteFallback" in state) for text in texts))
        return bool(decoder.getstate()[0])

    def _take(self, whole: str) -> str:
        """Return what `whole`, the text of all tokens here, has more than was shown; now all is shown."""
        before = self._decode(self._ids[: self._shown])
        new = whole[len(before) :] if whole.startswith(before) else self._decode(self._ids[self._shown :])
        self._shown = len(self._ids)
        return new

    def _end(self, prompt: Sequence[int]) -> list[int]:
        """Return the prompt's last tokens, from the beginning of a character on."""
        ends = (list(prompt[-size:]) for size in range(CONTEXT, CONTEXT + LONGEST_CHARACTER))
        ends = (end for end in ends if INCOMPLETE not in self._decode(end))
        return next(ends, list(prompt[-CONTEXT:]))

    def _decode(self, ids: list[int]) -> str:
        if self._hidden is None:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return str(self._tokenizer.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False))


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the tokens that are left out of texts."""
    return frozenset(id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def _spelled(token: str, byte_level: bool, byte_fallback: bool) -> bytes:
    """Return the bytes that a token stands for, by its spelling in the vocabulary."""
    if byte_level and ALPHABET.keys() >= set(token):
        return bytes(ALPHABET[character] for character in token)
    if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.encode()


class StopStrings:
    """A filter that withholds text which may begin a stop string, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""  # text that may be the beginning of a stop string
        self.first: str | None = None
        """The stop string that came first, if one did."""

    @property
    def reached(self) -> bool:
        """Whether a stop string came."""
        return self.first is not None

    def push(self, text: str) -> str:
        """Return the text that is certain to come before any stop string."""
        self._held += text
        hits = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if hits:
            start, self.first = min(hits)
            certain, self._held = self._held[:start], ""
            return certain
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """Return what was withheld, now that no more text comes."""
        rest, self._held = self._held, ""
        return rest


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
