"""The tokenizer of a checkpoint or bundle, and the special tokens that its config names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, write_json
from recycle_onnx.untrusted import read_bytes

MOST_BYTES = 256 << 20
"""Of a tokenizer.json: eight times the largest that we know."""


def load_tokenizer(folder: Path, *, named: Path | None = None) -> Tokenizer:
    """Read `tokenizer.json` in `folder`: how text becomes tokens, and nothing else.

    Such a file may also say how texts were batched when it was saved. That is not followed: truncation would cut
    prompts, and padding would put tokens into them that nobody wrote. `named` is what errors call the file where the
    user knows another one.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    try:
        data = read_bytes(path, MOST_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{named or path}: no such file; expected the model's tokenizer") from error
    try:
        return _tried(Tokenizer.from_buffer(data))  # from_file takes no names that are not UTF-8
    except BaseException as error:  # tokenizers raises bare Exception, and for a Rust panic something that is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{named or path}: not a tokenizer that `tokenizers` can read ({error})") from error


def _tried(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer without what its file says about batching, after it has shown that it works."""
    tokenizer.no_truncation()
    tokenizer.no_padding()  # to 2^33 tokens would end the process
    tokenizer.decode(tokenizer.encode("a b").ids)
    return tokenizer


def special_token(path: Path, name: str) -> str | None:
    """Return the text of a special token (`eos_token`) in a tokenizer_config.json.

    That is a string, or an object that holds one.

    None where it names none, or there is no such file.

    Raises:
        InputError: it names something else, as transformers has it too.
    """
    return special_tokens(path, (name,)).get(name)


def special_tokens(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the texts of those special tokens that a tokenizer_config.json names, as for `special_token`."""
    config = read_json(path) if path.exists() else {}
    return {name: _text_of(config[name], name, path) for name in names if config.get(name) is not None}


def _text_of(token: Any, name: str, path: Path) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise InputError(f"{path}: {name} is {token!r:.100}; expected a text, or an object with its content")
    return text


def leave_out_tokens(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Take tokens that the model has no rows for out of the tokenizer.json at `path`; `tokenizer` is its content.

    (Gemma's small models have the tokens of the large ones, that for an image for instance.) A text that holds one is
    then read as any other, in tokens that the model has.
    """
    if max(tokenizer.get_vocab().values(), default=0) < vocab_size:
        return
    raw = read_json(path)
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < vocab_size]
    if isinstance(vocabulary := raw["model"].get("vocab"), dict):
        raw["model"]["vocab"] = {text: token for text, token in vocabulary.items() if token < vocab_size}
    if "merges" in raw["model"]:
        raw["model"]["merges"] = [merge for merge in raw["model"]["merges"] if _known(merge, raw["model"])]
    write_json(path, raw)
    load_tokenizer(path.parent)


def _known(merge: str | list[str], model: dict[str, Any]) -> bool:
    """Tell whether a merge makes a token of the vocabulary out of two."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    whole = left + right.removeprefix(model.get("continuing_subword_prefix") or "")
    return all(text in model["vocab"] for text in (left, right, whole))
