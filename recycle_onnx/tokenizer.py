"""The tokenizer of a checkpoint or bundle."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.untrusted import check_regular


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    check_regular(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; expected the model's tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path}: not a tokenizer that `tokenizers` can read ({error})") from error
