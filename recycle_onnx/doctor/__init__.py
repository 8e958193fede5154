"""What this machine can do, whether a bundle is sound on it, and what to change."""

from recycle_onnx.doctor.finding import Finding
from recycle_onnx.doctor.report import DoctorReport, examine

__all__ = ["DoctorReport", "Finding", "examine"]
