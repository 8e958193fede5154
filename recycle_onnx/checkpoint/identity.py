"""Which base a module belongs to, and whether another copy of a base is the same one.

The same base lies about as float32, bfloat16 or GGUF, and its files differ. What it computes (its sizes, rotary
positions, norms, …) and which tokens its ids stand for are the same, and by these it is recognised.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.checkpoint.weights import joint_digest
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, sha256
from recycle_onnx.provenance import COPY, read_source
from recycle_onnx.tokenizer import load_tokenizer

NOT_COMPARED = ("model_type", "context_length", "tied_embeddings", "genai_type", "raw", "layers")
"""Names, what a copy may have set anew, and whether a file keeps tied weights twice; layers are compared one by one."""
ROUNDING = 1e-5
"""Relative difference of numbers that are the same: GGUF keeps them in float32."""
NAMED = 3
"""Most differences that a message lists."""


@dataclass(frozen=True)
class BaseReference:
    """The base that a module belongs to: digests of its files, and what recognises another copy of it.

    The first two are digests of its files. `config` is what its `config.json` says, `tokens` how many its tokenizer
    has, and `tokens_sha256` their digest (`vocabulary`); None where an earlier version of this project wrote it, or
    there is no tokenizer. `source` is where it came from, if that is known; `path` its folder when it lies elsewhere.
    """

    config_sha256: str
    weights_sha256: str
    path: str | None = None
    config: dict[str, Any] | None = None
    tokens: int | None = None
    tokens_sha256: str | None = None
    source: dict[str, Any] | None = None

    @classmethod
    def of(cls, folder: Path, weights_sha256: str, path: Path | None = None) -> BaseReference:
        """Describe the base in `folder`."""
        digests = cls(sha256(folder / "config.json"), weights_sha256, None if path is None else str(path))
        return digests.described_by(folder)

    @classmethod
    def read(cls, raw: Any, where: Path) -> BaseReference:
        """Read the `base` of a `recycler/config.json`; fields that are not known are ignored.

        Raises:
            InputError: it is no object, or a field is of another type.
        """
        if not isinstance(raw, dict):
            raise InputError(f"{where}: base is {raw!r}; expected the digests of the module's base")
        for name, kind in (("config", dict), ("source", dict), ("tokens", int), ("tokens_sha256", str), ("path", str)):
            if not isinstance(raw.get(name), kind | None):
                raise InputError(f"{where}: base.{name} is {raw[name]!r:.80}; expected {kind.__name__} or null")
        known: dict[str, Any] = {f.name: raw.get(f.name) for f in fields(cls)}
        return cls(**known)

    def described_by(self, folder: Path) -> BaseReference:
        """Return a copy with what the base's files in `folder` say about it."""
        config = {name: value for name, value in read_json(folder / "config.json").items() if name[0] != "_"}
        tokens = vocabulary(folder) if (folder / "tokenizer.json").exists() else (None, None)
        return replace(self, config=config, tokens=tokens[0], tokens_sha256=tokens[1], source=read_source(folder))

    def is_copy_of(self, weights_sha256: str) -> bool:
        """Tell whether its weights are those of the GGUF file with this digest, copied and not changed since."""
        source = self.source or {}
        of_file, of_copy = (joint_digest([str(source.get(name))]) for name in ("sha256", COPY))
        return (of_file, of_copy) == (weights_sha256, self.weights_sha256)

    @property
    def describes(self) -> bool:
        """Whether it says enough to recognise another copy of the base."""
        return self.config is not None and self.tokens_sha256 is not None


def vocabulary(folder: Path) -> tuple[int, str]:
    """Count the tokens of the tokenizer in `folder`; also return a SHA-256 over their ids and texts.

    Merges, normalizers and templates are not in it: a tokenizer made from a GGUF file states them in other words.
    """
    ids = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    listed = sorted((index, token) for token, index in ids.items())
    return len(ids), hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def check_same_base(expected: BaseReference, actual: BaseReference, base: BaseConfig, module: Path, name: str) -> None:
    """Refuse the base `name` if it computes otherwise than the one that `module` was made for, or has other tokens.

    Raises:
        InputError: names what differs.
    """
    assert expected.config is not None
    made_for, _ = describe(expected.config, module / "config.json")
    different = [*_differences(made_for, base)]
    if actual.tokens_sha256 != expected.tokens_sha256:
        how = "other ones" if actual.tokens == expected.tokens else f"{actual.tokens or 'none'} here"
        different.append(f"another tokenizer ({expected.tokens} tokens, {how})")
    if different:
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise InputError(
            f"{module}: a module for another base than {name}: {', '.join(different[:NAMED])}{more}; "
            "expected the base it was trained on, in whatever precision"
        )


def _differences(made_for: BaseConfig, base: BaseConfig) -> Iterator[str]:
    """Yield what differs, each as `hidden size 576 against 288`."""
    if len(made_for.layers) != len(base.layers):
        yield f"layers {len(made_for.layers)} against {len(base.layers)}"
    for field in fields(BaseConfig):
        theirs, ours = getattr(made_for, field.name), getattr(base, field.name)
        if field.name not in NOT_COMPARED and not _same(_plain(theirs), _plain(ours)):
            yield f"{field.name.replace('_', ' ')} {theirs} against {ours}"
    for index, (theirs, ours) in enumerate(zip(made_for.layers, base.layers, strict=False)):
        pairs = ((name, value, asdict(ours)[name]) for name, value in asdict(theirs).items())
        if apart := [name for name, first, second in pairs if not _same(first, second)]:
            yield f"{' and '.join(apart)} of layer {index}"
            return  # the others differ alike


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=ROUNDING)
    return bool(first == second)
