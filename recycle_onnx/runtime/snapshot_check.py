"""Whether the arrays of a saved conversation are what a model's caches can take over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.decoding.decoder import DROPPED
from recycle_onnx.runtime.decoding.half import Half

Arrays = Mapping[str, NDArray[Any]]


def check_snapshot(arrays: Arrays, full: Half, recycler: Half | None) -> None:
    """Compare names, types and shapes with those of `Decoder.snapshot`.

    Raises:
        ValueError: names the array that is missing, or of another type or shape.
    """
    vocab_size = full.spec.vocab_size
    tokens = _check_half(arrays, "full", full, vocab_size)
    waiting = _array(arrays, "states", full.spec.float_type, (None, full.spec.state_size))
    if recycler is None:
        return
    read = _check_half(arrays, "recycler", recycler, vocab_size)
    before = tokens[1 : 1 + len(read)]  # the last token that the module read may be one that the full model has not
    if "recycler.unread" in arrays and _array(arrays, "recycler.unread", "int64", (1,))[0] < 0:
        raise ValueError("recycler.unread is less than 0")
    if not np.array_equal(read[: len(before)], before):
        raise ValueError("recycler.tokens are not those of the full model")
    if len(read) + len(waiting) > len(tokens):
        raise ValueError(f"states has {len(waiting)} rows, {len(tokens) - len(read)} at most")


def _check_half(arrays: Arrays, kind: str, half: Half, vocab_size: int) -> NDArray[Any]:
    """Check the arrays of one half; return its tokens [n]."""
    spec = half.spec
    tokens = _array(arrays, f"{kind}.tokens", "int64", (None,))
    if len(tokens) > half.cache.limit or ((tokens < 0) | (tokens >= vocab_size)).any():
        raise ValueError(f"{kind}.tokens are not up to {half.cache.limit} tokens below {vocab_size}")
    dropped = 0
    if (name := f"{kind}.{DROPPED}") in arrays:
        dropped = int(_array(arrays, name, "int64", (1,))[0])
        if not 0 <= dropped <= len(tokens):
            raise ValueError(f"{name} is {dropped}; expected 0 to {len(tokens)}")
    for name, dtype, has_window in zip(spec.past_names(), spec.cache_types(), spec.has_window(), strict=True):
        rows = len(tokens) - dropped if has_window else len(tokens)
        _array(arrays, f"{kind}.{name}", dtype, (spec.num_kv_heads, rows, spec.head_dim))
    return tokens


def _array(arrays: Arrays, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"no {name}")
    fits = array.ndim == len(shape) and all(
        size in (None, length) for size, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; expected {dtype}{list(shape)}")
    return array
