"""RoPE scaling: what llama.cpp stores, as transformers' `rope_scaling`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.sources.gguf.keys import Keys
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile, decode

FREQUENCIES = "rope_freqs.weight"
"""A tensor of factors by which Llama 3's scaling divides each frequency; the file's keys say nothing of it."""
LOW, HIGH = 1.0, 4.0
"""Llama 3's factors: of its first context, wavelengths above 1/LOW are stretched, those below 1/HIGH left alone."""


def rope_scaling(keys: Keys, head_dim: int, theta: float) -> dict[str, object] | None:
    """Return the scaling that the file's keys or its `rope_freqs` tensor state.

    Raises:
        InputError: a kind of scaling that is not supported.
    """
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear", 1.0) != 1.0 else "none")
    if FREQUENCIES in keys.file.tensors:
        return _llama3(keys, head_dim, theta)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise keys.error("rope.scaling.type", f"is {kind!r}; expected none, linear, yarn or Llama 3's rope_freqs")
    factor = keys.real("rope.scaling.factor", keys.get("rope.scale_linear"))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    scaling: dict[str, object] = {"rope_type": "yarn", "factor": factor}
    scaling["original_max_position_embeddings"] = keys.count("rope.scaling.original_context_length")
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}") is not None:
            scaling[name] = keys.real(f"rope.scaling.yarn_{name}")
    return scaling


def _llama3(keys: Keys, head_dim: int, theta: float) -> dict[str, object] | None:
    """Find the context from which Llama 3's rule gives the divisors of frequencies that llama.cpp stores."""
    stored = frequencies(keys.file)
    if not np.isfinite(stored).all() or stored.min(initial=1.0) <= 0:
        raise keys.error("rope", f"has {FREQUENCIES} that are not positive numbers; damaged")
    if np.allclose(stored, 1.0):
        return None
    factor = float(stored.max())
    stated = keys.get("rope.scaling.original_context_length")
    for context in (*([stated] if stated else []), 8192, *(2**power for power in range(4, 24))):
        expected = llama3_divisors(head_dim, theta, factor, context)
        if stored.shape == expected.shape and np.allclose(stored, expected, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 6),
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": context,
            }
    raise keys.error("rope", f"has {FREQUENCIES} that are not Llama 3's scaling by {factor:g}; that is not supported")


def frequencies(file: GgufFile) -> NDArray[np.float32]:
    """Read the divisors of the rotary frequencies, [head size / 2]."""
    tensor = file.tensors[FREQUENCIES]
    values: NDArray[np.float32] = decode(file.raw(tensor), tensor.type)[0]
    return values


def llama3_divisors(head_dim: int, theta: float, factor: float, context: int) -> NDArray[np.float64]:
    """Compute what Llama 3 divides each rotary frequency by; its first context was `context`."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - LOW) / (HIGH - LOW), 0.0, 1.0)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors
