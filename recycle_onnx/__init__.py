"""Recycle a causal language model's hidden states: export both halves to ONNX and run them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recycle_onnx import telemetry as telemetry  # before anything imports onnxruntime
from recycle_onnx.errors import InputError, RecycleError

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig as GenerationConfig
    from recycle_onnx.runtime.model import RecycleModel
    from recycle_onnx.runtime.model import load as load
    from recycle_onnx.runtime.structured import Grammar as Grammar
    from recycle_onnx.runtime.structured import JsonSchema as JsonSchema
    from recycle_onnx.runtime.structured import Regex as Regex

__version__ = "0.1.0"
__all__ = [
    "GenerationConfig", "Grammar", "InputError", "JsonSchema", "RecycleError", "RecycleModel", "Regex", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # onnxruntime is only imported by those who run a model: the exporter does not need it to read a checkpoint
    if name in ("load", "RecycleModel"):
        from recycle_onnx.runtime import model

        return getattr(model, name)
    if name == "GenerationConfig":
        from recycle_onnx.runtime.config import GenerationConfig

        return GenerationConfig
    if name in ("Grammar", "JsonSchema", "Regex"):
        from recycle_onnx.runtime import structured

        return getattr(structured, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
