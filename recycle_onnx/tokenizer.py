"""The tokenizer of a checkpoint or bundle."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`: how text becomes tokens, and nothing else.

    Such a file may also say how texts were batched when it was saved. That is not followed: truncation would cut
    prompts, and padding would put tokens into them that nobody wrote.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; expected the model's tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path}: not a tokenizer that `tokenizers` can read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
