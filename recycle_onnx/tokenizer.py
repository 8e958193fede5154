"""The tokenizer of a checkpoint or bundle."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import check_regular


def load_tokenizer(folder: Path, *, named: Path | None = None) -> Tokenizer:
    """Read `tokenizer.json` in `folder`; `named` is what errors call it where the user knows another file.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    check_regular(path)
    if not path.exists():
        raise InputError(f"{named or path}: no such file; expected the model's tokenizer")
    try:
        return _tried(Tokenizer.from_file(str(path)))
    except BaseException as error:  # tokenizers raises bare Exception, and for a Rust panic something that is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{named or path}: not a tokenizer that `tokenizers` can read ({error})") from error


def _tried(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without what its file says about batching, after it has shown that it works."""
    tokenizer.no_truncation()
    tokenizer.no_padding()  # to 2^33 tokens would end the process
    tokenizer.decode(tokenizer.encode("a b").ids)
    return tokenizer
