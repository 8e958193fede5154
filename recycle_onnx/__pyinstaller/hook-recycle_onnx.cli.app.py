"""Files of the command line's verbs, which are imported when they are asked for."""

from recycle_onnx.cli.app import VERBS

hiddenimports = [f"recycle_onnx.cli.{verb}" for verb in VERBS]
