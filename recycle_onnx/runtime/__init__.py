"""Runs a bundle: ONNX Runtime, numpy and tokenizers, nothing else."""
