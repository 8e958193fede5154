"""What the writer writes is what the library of safetensors reads, and to the byte what a stream of it gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from recycle_onnx.safetensors_file import TYPES, Stream, write_arrays, write_streams

ARRAYS = {
    "half": np.arange(3, dtype=np.float16),
    "brain": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False, True]),
}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.safetensors", ARRAYS)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", [kind for kind in TYPES if "8_" not in kind])
def test_every_type(kind: str, tmp_path: Path) -> None:
    array = np.array([0, 1, 1]).astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    write_arrays(tmp_path / "a.safetensors", {"a": array})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], array)


def test_pieces_are_made_while_the_file_is_written_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"

    def pieces(*, fail: bool) -> Iterator[bytes]:
        yield np.float32(1).tobytes()
        if fail:
            raise OSError("the source went away")
        yield np.float32(2).tobytes()

    write_streams(path, {"a": Stream("F32", (2,), pieces(fail=False))})
    with pytest.raises(OSError, match="went away"):
        write_streams(path, {"a": Stream("F32", (2,), pieces(fail=True))})
    np.testing.assert_array_equal(load_file(path)["a"], [1, 2])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
