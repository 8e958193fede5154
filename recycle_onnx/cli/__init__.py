"""The command line: thin verbs over the Python face, one file each."""

from recycle_onnx.cli.app import main

__all__ = ["main"]
