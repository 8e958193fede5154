"""Checkpoints to bundles: builds the two ONNX graphs from safetensors. Needs the extra `export`, and no torch."""

from recycle_onnx.checkpoint import DraftVocabulary
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.cached import export_to_cache
from recycle_onnx.export.calibrated.calibrate import Calibration
from recycle_onnx.export.exporter import ExportOptions, ExportReport, export
from recycle_onnx.export.half_precision import HalfPrecision
from recycle_onnx.export.quantizer import QuantizeOptions, quantize_bundle

__all__ = [
    "Calibration",
    "DraftVocabulary",
    "ExportOptions",
    "ExportReport",
    "HalfPrecision",
    "Quantization",
    "QuantizeOptions",
    "export",
    "export_to_cache",
    "quantize_bundle",
]
