"""Checkpoints to bundles: builds the two ONNX graphs from safetensors. Needs the extra `export`, and no torch."""

from recycle_onnx.export.exporter import ExportReport, export

__all__ = ["ExportReport", "export"]
