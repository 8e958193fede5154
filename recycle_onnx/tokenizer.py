"""The tokenizer of a checkpoint or bundle, and the special tokens that its config names."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.untrusted import check_regular


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`: how text becomes tokens, and nothing else.

    Such a file may also say how texts were batched when it was saved. That is not followed: truncation would cut
    prompts, and padding would put tokens into them that nobody wrote.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "tokenizer.json"
    check_regular(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; expected the model's tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path}: not a tokenizer that `tokenizers` can read ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_token(path: Path, name: str) -> str | None:
    """The text of a special token (`eos_token`) in a tokenizer_config.json: a string, or an object that holds one.

    None where it names none, or there is no such file.
    """
    token = read_json(path).get(name) if path.exists() else None
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
