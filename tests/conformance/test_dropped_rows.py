"""A graph whose layers have windows computes the same without the rows that they no longer see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from recycle_onnx.bundle import Manifest
from recycle_onnx.contract import DROPPED_ROWS
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers.windows import WINDOW, write_checkpoint

LENGTH, RUN, ROOM = 40, 2, 3
"""Tokens that were read, of the run behind them, and rows that buffers have beyond both."""


@pytest.fixture(scope="module", params=["ort", "standard"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_too_old(request.param):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("windows")
    export(write_checkpoint(folder / "model"), folder / "bundle", ExportOptions(request.param))
    return folder / "bundle"


def logits(bundle: Path, dropped: int | None) -> np.ndarray:
    """Logits of a run behind random keys and values, of which layers with a window lack the first rows."""
    spec = Manifest.read(bundle / "recycle.json").graphs["full"]
    random = np.random.default_rng(1)
    feed = {
        "input_ids": random.integers(0, spec.vocab_size, (1, RUN)),
        "attention_mask": np.ones((1, LENGTH + RUN), np.int64),
    }
    for name, has_window in zip(spec.past_names(), spec.has_window(), strict=True):
        rows = random.standard_normal((1, spec.num_kv_heads, LENGTH, spec.head_dim), np.float32)
        rows = rows[:, :, dropped or 0 :] if has_window else rows
        feed[name] = np.pad(rows, ((0, 0), (0, 0), (0, RUN + ROOM), (0, 0)))
    if dropped is not None:
        feed[DROPPED_ROWS] = np.array(dropped)
    session = ort.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(["logits"], feed)[0]
    return made


def test_no_rows_are_dropped_unless_the_caller_says_so(bundle: Path) -> None:
    assert np.array_equal(logits(bundle, 0), logits(bundle, None))


@pytest.mark.parametrize("dropped", [1, 8, LENGTH - WINDOW + 1])
def test_rows_that_no_token_sees_can_be_dropped(dropped: int, bundle: Path) -> None:
    assert np.allclose(logits(bundle, dropped), logits(bundle, 0), atol=1e-5)


def test_a_row_that_is_seen_cannot(bundle: Path) -> None:
    assert not np.allclose(logits(bundle, LENGTH - WINDOW + 2), logits(bundle, 0), atol=1e-3)
