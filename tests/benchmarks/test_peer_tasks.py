"""A worker as a model of the harness judges continuations as its engine does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.runtime.model import Model
from tests.benchmarks.conftest import BENCHMARKS

pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")


@pytest.fixture
def peer(sample_bundle: Path, sample_model: Model) -> Any:
    worker = importlib.import_module("worker").Worker(
        sys.executable, BENCHMARKS / "peers" / "ours.py", sample_bundle, 1
    )
    yield importlib.import_module("peer_tasks").PeerLM(sample_model, worker)
    worker.close()


def test_our_own_worker_judges_as_we_do(peer: Any, sample_model: Model) -> None:
    from recycle_onnx.evaluation.harness import RecycleLM

    context = sample_model.encode("Once upon a time there was a little")
    said = sample_model.generate(context, strategy="full", max_new_tokens=3, stop_ids=()).tokens
    own = RecycleLM(sample_model)
    for continuation, greedy in ((said, True), ([*said[:2], said[2] + 1], False), ([5], False)):
        request = [(None, context, continuation)]
        [(nats, right)], [(expected, _)] = peer._loglikelihood_tokens(request), own._loglikelihood_tokens(request)
        assert nats == pytest.approx(expected, abs=1e-4)
        assert nats < 0
        assert right is greedy
