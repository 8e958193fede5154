"""Log-probabilities are those of the raw logits, whichever strategy and settings chose the token."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from recycle_onnx.runtime.decoding.logprobs import logprobs
from recycle_onnx.runtime.model import Model

PROMPT = "Once upon a time, there was a little dog"


@given(seed=st.integers(0, 1000), size=st.integers(1, 40), top=st.integers(0, 20), scale=st.floats(0.1, 30))
def test_values_are_the_log_softmax_best_first(seed: int, size: int, top: int, scale: float) -> None:
    logits = (np.random.default_rng(seed).normal(size=size) * scale).astype(np.float32)
    expected = log_softmax(logits.astype(np.float64))
    found = logprobs(logits, size // 2, top)
    assert found.chosen == pytest.approx(expected[size // 2], abs=1e-9)
    order = np.argsort(-expected, kind="stable")[:top]
    assert [token for token, _ in found.top] == order.tolist()
    np.testing.assert_allclose([value for _, value in found.top], expected[order], atol=1e-9)


def test_a_draft_vocabulary_has_its_own_ids_and_lacks_others() -> None:
    logits, ids = np.array([0.0, 2.0, 1.0], np.float32), np.array([4, 9, 11])
    found = logprobs(logits, 9, 2, ids)
    assert found.chosen == found.top[0][1]
    assert [token for token, _ in found.top] == [9, 11]
    assert logprobs(logits, 5, 1, ids).chosen is None
    assert logprobs(logits, 12, 1, ids).chosen is None


@pytest.mark.parametrize("controls", [{}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3}], ids=str)
def test_they_are_those_of_the_full_models_own_logits(sample_model: Model, controls: dict[str, Any]) -> None:
    generation = sample_model.stream(PROMPT, strategy="full", max_new_tokens=12, logprobs=5, **controls)
    text = list(generation.prompt)
    for token in generation:
        expected = log_softmax(sample_model.decoder("full").prefill(text)[-1].astype(np.float64))
        assert token.logprob == pytest.approx(expected[token.id], abs=1e-3)
        assert len(token.top_logprobs) == 5
        assert token.top_logprobs[0][1] == pytest.approx(expected.max(), abs=1e-3)
        assert token.logprobs_of == "full"
        text.append(token.id)


@pytest.mark.parametrize(
    "plan", [{"strategy": "verify", "chain": 3}, {"strategy": "lookup"}, {"strategy": "auto"}], ids=str
)
def test_every_lossless_strategy_gives_those_of_full(sample_model: Model, plan: dict[str, Any]) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "logprobs": 3, "temperature": 0.8, "frequency_penalty": 0.5}
    first = list(sample_model.stream(PROMPT, strategy="full", **options))
    second = list(sample_model.stream(PROMPT, **plan, **options))
    assert [token.id for token in first] == [token.id for token in second]
    for one, other in zip(first, second, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert dict(one.top_logprobs) == pytest.approx(dict(other.top_logprobs), abs=1e-3)
        assert other.logprobs_of == "full"


def test_under_alternate_they_are_labelled_with_the_half_that_chose(sample_model: Model) -> None:
    tokens = list(sample_model.stream(PROMPT, strategy="alternate", max_new_tokens=20, logprobs=1))
    assert [token.logprobs_of for token in tokens] == ["recycler" if token.recycled else "full" for token in tokens]
    assert any(token.recycled for token in tokens)
    assert all(token.top_logprobs == ((token.id, token.logprob),) for token in tokens)  # greedy: the likeliest


def test_results_hold_them_as_plain_values_where_they_were_asked_for(sample_model: Model) -> None:
    result = sample_model.generate(PROMPT, max_new_tokens=5, logprobs=0)
    written = json.loads(json.dumps(result.to_json()))["logprobs"]
    assert [set(entry) for entry in written] == [{"logprob", "top_logprobs", "logprobs_of"}] * 5
    assert all(entry["logprob"] < 0 and entry["top_logprobs"] == [] for entry in written)
    without = sample_model.stream(PROMPT, max_new_tokens=5)
    assert all(token.logprob is None for token in without)
    assert without.result.logprobs is None
