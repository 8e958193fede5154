"""Examinations that do not wait for memory: what they measure is compared elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from recycle_onnx.machine import bandwidth


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BYTES", 8 << 20)
    monkeypatch.setattr(bandwidth, "CACHES", Path("no such folder"))
    monkeypatch.setattr(bandwidth, "BYTES_A_THREAD", 8 << 20)
    monkeypatch.setattr(bandwidth, "ROUNDS", 3)
