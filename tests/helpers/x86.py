"""What was seen of one kind of processor only."""

from __future__ import annotations

import platform

import pytest

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="was seen on x86 processors only")
