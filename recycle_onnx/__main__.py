"""`python -m recycle_onnx`, the same as `recycle-onnx`."""

from recycle_onnx.cli import main

main()
