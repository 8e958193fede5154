"""Extras: what a plain install leaves out, and the command that brings it."""

from __future__ import annotations

from importlib.util import find_spec

_EXPORT = ("onnx", "onnxscript", "onnx_ir", "safetensors", "ml_dtypes", "threadpoolctl")
_CHAT = ("jinja2", "markupsafe")
EXTRAS: dict[str, tuple[str, ...]] = {
    "export": _EXPORT,
    "gguf": (*_EXPORT, "gguf"),
    "hub": (*_EXPORT, "huggingface_hub"),
    "chat": _CHAT,
    "train": (*_CHAT, "torch", "accelerate", "safetensors", "ml_dtypes"),
    "serve": (*_CHAT, "prometheus_client", "pydantic", "pydantic_core", "starlette", "uvicorn"),
    "structured": ("llguidance",),
    "eval": ("lm_eval", "datasets"),
    "plot": ("matplotlib",),
}
"""The modules that each extra of pyproject.toml brings; a test compares the two."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'recycle-onnx[{extra}]'"


def extra_of(module: str, preferred: str | None = None) -> str | None:
    """Name the extra that brings a module: `preferred` where it does, None where no extra does."""
    top = module.partition(".")[0]
    if preferred and top in EXTRAS[preferred]:
        return preferred
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def is_installed(extra: str) -> bool:
    """Tell whether all modules of an extra are there; imports none of them."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])
