"""Which float32 models are too heavy to have in memory whole: they are read a layer at a time, or in int8."""

from __future__ import annotations

from recycle_onnx.bundle import Bundle

HEAVY = 1_000_000_000
"""Bytes of float32 weights above which a model is. One of 1.1 B parameters has 4.4 GB, of 135 M 0.5 GB."""


def is_heavy(bundle: Bundle) -> bool:
    """Tell whether the full model of a float32 bundle is."""
    graph = bundle.graph("full")
    return graph.with_name(f"{graph.name}.data").stat().st_size > HEAVY
