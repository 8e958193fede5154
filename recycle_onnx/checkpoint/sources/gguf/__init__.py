"""GGUF files, as llama.cpp writes them, to Hugging Face folders."""

from recycle_onnx.checkpoint.sources.gguf.convert import convert

__all__ = ["convert"]
