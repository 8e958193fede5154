"""How long a test walks through many cases: a short form by default, all of it with RECYCLE_ONNX_LONG=1."""

from __future__ import annotations

import os

LONG = os.environ.get("RECYCLE_ONNX_LONG", "0") != "0"


def examples(count: int) -> int:
    """Give the number of hypothesis' examples: a third in the short form."""
    return count if LONG else -(-count // 3)
