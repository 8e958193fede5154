"""Processors, candidates and log-probabilities against transformers and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.generation import logits_process as theirs

from recycle_onnx.runtime.decoding.logprobs import log_softmax
from recycle_onnx.runtime.decoding.processors import MinNewTokens, NoRepeatNGram, Processor, RepetitionPenalty
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.helpers.prompts import story_prompts
from tests.reference.models import SAMPLE

VOCABULARY = 24
PREFIX = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40)
SEED = st.integers(0, 10_000)
pytestmark = pytest.mark.reference


def random_logits(seed: int) -> np.ndarray:
    return (3 * np.random.default_rng(seed).normal(size=VOCABULARY)).astype(np.float32)


def assert_same(ours: Processor, their: Any, ids: list[int], logits: np.ndarray) -> None:
    expected = their(torch.tensor([ids]), torch.tensor(logits)[None])[0].numpy()
    np.testing.assert_allclose(ours(np.array(ids), logits.copy()), expected, rtol=1e-6)


@given(ids=PREFIX, seed=SEED, penalty=st.floats(0.2, 3.0))
def test_repetition_penalty(ids: list[int], seed: int, penalty: float) -> None:
    their = theirs.RepetitionPenaltyLogitsProcessor(penalty)
    assert_same(RepetitionPenalty(penalty), their, ids, random_logits(seed))


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=SEED, size=st.integers(1, 5))
def test_no_repeat_ngram(ids: list[int], seed: int, size: int) -> None:
    assert_same(NoRepeatNGram(size), theirs.NoRepeatNGramLogitsProcessor(size), ids, random_logits(seed))


@given(ids=PREFIX, seed=SEED, count=st.integers(1, 20), stops=st.lists(st.integers(0, 23), min_size=1, max_size=3))
def test_min_new_tokens(ids: list[int], seed: int, count: int, stops: list[int]) -> None:
    prompt = len(ids) // 2
    their = theirs.MinNewTokensLengthLogitsProcessor(prompt, count, stops)
    assert_same(MinNewTokens(count, prompt, tuple(stops)), their, ids, random_logits(seed))


WARPERS: dict[str, Any] = {
    "temperature": theirs.TemperatureLogitsWarper,
    "top_k": theirs.TopKLogitsWarper,
    "top_p": theirs.TopPLogitsWarper,
    "min_p": theirs.MinPLogitsWarper,
}
"""In the order in which transformers applies them."""


@given(
    seed=SEED,
    sampling=st.fixed_dictionaries(
        {"temperature": st.floats(0.5, 3.0)},
        optional={"top_k": st.integers(1, 24), "top_p": st.floats(0.05, 0.999), "min_p": st.floats(0.001, 0.9)},
    ),
)
@settings(max_examples=300)
def test_the_candidates_of_sampling(seed: int, sampling: dict[str, Any]) -> None:
    scores = torch.tensor(random_logits(seed), dtype=torch.float64)[None]
    for name, warper in WARPERS.items():
        if name in sampling:
            scores = warper(sampling[name])(None, scores)
    scaled = random_logits(seed).astype(np.float64) / sampling["temperature"]
    found = Sampling(**sampling)._candidates(scaled)
    np.testing.assert_array_equal(found, torch.isfinite(scores[0]).nonzero().ravel().numpy())
    np.testing.assert_allclose(scaled[found], scores[0][found].numpy(), rtol=1e-9)


@given(seed=SEED, scale=st.floats(0.01, 50))
def test_log_probabilities(seed: int, scale: float) -> None:
    logits = (scale * random_logits(seed)).astype(np.float32)
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=-1)
    np.testing.assert_allclose(log_softmax(logits), expected.numpy(), atol=1e-9)


CONTROLS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 45},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 30},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_texts_are_those_of_transformers(sample_model: Model, controls: dict[str, Any]) -> None:
    reference = AutoModelForCausalLM.from_pretrained(SAMPLE, dtype=torch.float32)
    for prompt in story_prompts(200)[::25]:
        ids = sample_model.encode(prompt)
        expected = reference.generate(torch.tensor([ids]), max_new_tokens=50, do_sample=False, **controls)
        result = sample_model.generate(prompt, max_new_tokens=50, strategy="verify", **controls)
        assert result.tokens == expected[0, len(ids) :].tolist(), prompt
