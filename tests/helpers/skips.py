"""What an old ONNX Runtime cannot run (`make test-lowest`)."""

from __future__ import annotations

import pytest

from recycle_onnx.runtime.ort.providers import why_too_old

needs_standard = pytest.mark.skipif(why_too_old("standard") is not None, reason=str(why_too_old("standard")))
