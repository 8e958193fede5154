"""Runs a bundle: ONNX Runtime, numpy and tokenizers, nothing else."""

import os
import sys

ONNXRUNTIME_CAME_FIRST = "onnxruntime" in sys.modules
"""Whether the application imported onnxruntime before us: then the variable below came too late, unless it was set."""

# Here, since all that imports onnxruntime here lies below: it reads the variable once, while it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
