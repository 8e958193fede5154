"""Whether a module is read as it was trained: its acceptance as declared, and with each doubtful convention flipped."""

from recycle_onnx.conventions.measuring import TOKENS, measure
from recycle_onnx.conventions.readings import MeasuredModule
from recycle_onnx.conventions.verdict import ConventionVerdict, settled

__all__ = ["TOKENS", "ConventionVerdict", "MeasuredModule", "measure", "settled"]
