"""The text that a model wrote to be calibrated with, kept in the user's cache: the latest one, some 300 kB.

Whoever goes on with an interrupted calibration, or tries another budget of bits, does not wait for it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.cache import cache_folder
from recycle_onnx.temporary import temporary_file

Ids = NDArray[np.int64]


def kept_text(depends_on: str, shape: tuple[int, int], write: Callable[[], Ids]) -> Ids:
    """Return windows of token ids of this shape: those that were kept, or what `write` writes now.

    `depends_on` says all that the text depends on. A cache that cannot be read or written is no error.
    """
    path = cache_folder() / "quantization" / f"text-{hashlib.sha256(depends_on.encode()).hexdigest()[:32]}.npy"
    with suppress(OSError, ValueError, EOFError):
        ids: Ids = np.load(path, allow_pickle=False)
        if ids.shape == shape and ids.dtype == np.int64:
            return ids
    ids = write()
    with suppress(OSError):
        _keep(ids, path)
    return ids


def _keep(ids: Ids, path: Path) -> None:
    """Write the text in the place of any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as (work, file):
        np.save(file, ids, allow_pickle=False)
        file.close()
        for other in path.parent.glob("text-*.npy"):
            other.unlink(missing_ok=True)
        work.replace(path)
