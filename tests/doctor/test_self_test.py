"""The self-test passes on a sound bundle, and fails where a graph computes something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.doctor import self_test
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import open_original


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def test_a_sound_bundle_passes_and_one_wrong_logit_does_not(bundle: Bundle) -> None:
    kinds: tuple[Kind, ...] = ("full", "recycler")
    sessions = {kind: open_original(bundle, kind, "cpu", 1) for kind in kinds}
    expected = self_test.on_the_cpu(bundle, 1)
    with Model(bundle, "cpu", 1) as model:
        found = self_test.run(model, sessions, expected)
        assert list(self_test.findings(found)) == []
        assert found.same_tokens == found.tokens > 3
        assert set(found.step_ms) == {"full", "recycle"}
        expected[1][3, 7] += 0.01 * np.abs(expected[1]).max()
        (finding,) = self_test.findings(self_test.run(model, sessions, expected))
    assert finding.level == "broken"
    assert "logits of recycler" in finding.what


def test_verify_must_be_full_where_it_is_promised(bundle: Bundle) -> None:
    found = self_test.SelfTest({}, 1e-3, tokens=10, same_tokens=9, lossless="exact", step_ms={"full": 1.0})
    (finding,) = self_test.findings(found)
    assert "after 9 of 10 tokens" in finding.what
    assert list(self_test.findings(replace(found, lossless="within_rounding"))) == []
    assert list(self_test.findings(replace(found, same_tokens=None))) == []
