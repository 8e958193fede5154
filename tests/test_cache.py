"""The user's cache: room for what is new is made where files lie unused longest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recycle_onnx.cache import make_room
from tests.helpers.command import names


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four files of ten bytes: `d` was used longest ago, then `a`, `c` and `b`."""
    for age, name in enumerate("bcad"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (0, 1000 - age))
    return [tmp_path / name for name in "abcd"]


def test_what_was_used_longest_ago_goes_first(files: list[Path], tmp_path: Path) -> None:
    assert make_room(files, 15, 40)
    assert names(tmp_path) == ["b", "c"]


def test_nothing_goes_where_there_is_room(files: list[Path], tmp_path: Path) -> None:
    assert make_room(files, 10, 50)
    assert names(tmp_path) == ["a", "b", "c", "d"]


def test_what_is_to_be_kept_stays(files: list[Path], tmp_path: Path) -> None:
    assert not make_room(files, 30, 40, keep=files[2:])
    assert names(tmp_path) == ["c", "d"]


def test_a_file_that_is_gone_already_takes_no_room(files: list[Path], tmp_path: Path) -> None:
    assert make_room([*files, tmp_path / "e"], 10, 50)
