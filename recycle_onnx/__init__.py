"""Recycle a causal language model's hidden states: export both halves to ONNX and run them together."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recycle_onnx import telemetry as telemetry  # before anything imports onnxruntime
from recycle_onnx.errors import InputError, NotFiniteError, OvertakenError, RecycleError, TextError

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig as GenerationConfig
    from recycle_onnx.runtime.conversation import Conversation as Conversation
    from recycle_onnx.runtime.generation import Generation as Generation
    from recycle_onnx.runtime.generation import Result as Result
    from recycle_onnx.runtime.generation import Stats as Stats
    from recycle_onnx.runtime.generation import Token as Token
    from recycle_onnx.runtime.loading import load as load
    from recycle_onnx.runtime.model import Model as Model
    from recycle_onnx.runtime.model import RecycleModel as RecycleModel
    from recycle_onnx.runtime.structured import Grammar as Grammar
    from recycle_onnx.runtime.structured import JsonSchema as JsonSchema
    from recycle_onnx.runtime.structured import Regex as Regex

__version__ = "0.1.0"
__all__ = [
    "Conversation", "Generation", "GenerationConfig", "Grammar", "InputError", "JsonSchema", "Model", "NotFiniteError",
    "OvertakenError", "RecycleError", "Regex", "Result", "Stats", "TextError", "Token", "load",
]  # fmt: skip
HOMES = {
    "config": ("GenerationConfig",),
    "conversation": ("Conversation",),
    "generation": ("Generation", "Result", "Stats", "Token"),
    "loading": ("load",),
    "model": ("Model", "RecycleModel"),
    "structured": ("Grammar", "JsonSchema", "Regex"),
}
"""The names that need onnxruntime, by their module in `runtime`: only those who run a model import it."""


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"recycle_onnx.runtime.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])  # what an editor offers to complete
