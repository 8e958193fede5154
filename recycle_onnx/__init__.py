"""Recycle a causal language model's hidden states: export both halves to ONNX and run them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recycle_onnx.errors import InputError, RecycleError

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig as GenerationConfig
    from recycle_onnx.runtime.model import RecycleModel
    from recycle_onnx.runtime.model import load as load

__version__ = "0.1.0"
__all__ = ["GenerationConfig", "InputError", "RecycleError", "RecycleModel", "load"]


def __getattr__(name: str) -> Any:
    # onnxruntime is only imported by those who run a model: the exporter does not need it to read a checkpoint
    if name in ("load", "RecycleModel"):
        from recycle_onnx.runtime import model

        return getattr(model, name)
    if name == "GenerationConfig":
        from recycle_onnx.runtime.config import GenerationConfig

        return GenerationConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
