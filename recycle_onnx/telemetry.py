"""Keeps ONNX Runtime's telemetry off: its official builds send usage data since 1.29, unless they are told not to."""

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime's own switch: an application that has set it is left its choice."""

if "onnxruntime" not in sys.modules:  # which reads it once, while it is imported
    os.environ.setdefault(VARIABLE, "1")

AT_IMPORT = os.environ.get(VARIABLE)
"""What onnxruntime reads; where an application imported it before us, what the variable was when we came."""
