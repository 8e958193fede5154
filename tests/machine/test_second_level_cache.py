"""What Linux says of the second-level cache, and what is not said elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recycle_onnx.machine import second_level_cache


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(second_level_cache, "CACHES", tmp_path)
    second_level_cache.size.cache_clear()
    yield tmp_path
    second_level_cache.size.cache_clear()


def add(caches: Path, index: int, level: str, size: str) -> None:
    folder = caches / f"index{index}"
    folder.mkdir()
    (folder / "level").write_text(f"{level}\n")
    (folder / "size").write_text(f"{size}\n")


def test_the_cache_of_the_second_level_is_taken(caches: Path) -> None:
    add(caches, 0, "1", "32K")
    add(caches, 1, "2", "1280K")
    add(caches, 2, "3", "32768K")
    assert second_level_cache.size() == 1280 << 10


@pytest.mark.parametrize("size", ["", "large"])
def test_what_cannot_be_read_is_not_known(size: str, caches: Path) -> None:
    add(caches, 0, "2", size)
    assert second_level_cache.size() is None


def test_other_platforms_do_not_tell(caches: Path) -> None:
    assert second_level_cache.size() is None
