"""The order of magnitude; benchmarks/bandwidth.py compares with the C program to some percent, on a quiet machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bandwidth import build, compiler, in_c
from recycle_onnx.machine import bandwidth
from recycle_onnx.machine.processors import allowed

SIZE = 128 << 20


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_program_in_c_reads_about_as_fast(threads: int, tmp_path: Path) -> None:
    if threads > allowed():
        pytest.skip("fewer processors than threads: the two programs wait for one another in different ways")
    program, data = build(tmp_path), np.ones(SIZE // 8, np.uint64)
    ours = theirs = 0.0
    for _ in range(20):  # on a busy machine any of these is slow: the fastest of each are compared
        ours = max(ours, bandwidth.read(data, threads))
        theirs = max(theirs, in_c(program, threads, SIZE))
        if theirs / 2.5 < ours < 2.5 * theirs:  # bits for bytes, or copies for reads, are further away
            return
    raise AssertionError(f"{ours} GB/s, and {theirs} GB/s in C")


def test_more_is_read_than_caches_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "CACHES", tmp_path)
    assert bandwidth.beyond_caches(1) == bandwidth.BYTES
    assert bandwidth.beyond_caches(8) == 8 * bandwidth.BYTES_A_THREAD
    (tmp_path / "index3").mkdir()
    (tmp_path / "index3" / "size").write_text("786432K\n")
    assert bandwidth.beyond_caches(1) == 4 * 768 << 20


def test_little_free_memory_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(bandwidth, "read", lambda data, threads: float(sizes.append(data.nbytes) or threads))
    assert bandwidth.measure(2, free_bytes=16 << 20) == bandwidth.Bandwidth(1.0, 2.0, 2)
    assert sizes == [8 << 20, 8 << 20]
