"""Bases that others quantized: matrices of small integers in safetensors, as `quantization_config` describes them.

A format is one small file: which tensors stand for a matrix, how its integers are packed, and what in a config is not
supported. What comes out are the tensors of the base under their own names, and their `Integers`.
"""

from recycle_onnx.checkpoint.quantized.weights import opened, without_quantization

__all__ = ["opened", "without_quantization"]
