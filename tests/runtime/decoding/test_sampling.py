"""Sampling depends on logits, seed and position alone, and draws from the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.decoding.sampling import Sampling

LOGITS = np.array([2.0, 0.5, -1.0, 1.0, 0.0, -3.0, 2.0, -0.5], np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_first_best_token() -> None:
    assert Sampling().choose(LOGITS, 5) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-6, 1e-8, 1e-310, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    logits = np.array([0.5, -1e6, 2.0, 1.9], np.float32)
    assert {Sampling(temperature, seed=seed).choose(logits, seed) for seed in range(50)} == {2}


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_the_same_seed_and_position_give_the_same_token(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1.0, seed=seed)
    assert sampling.choose(LOGITS, position) == sampling.choose(LOGITS.copy(), position)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_across_seeds(temperature: float) -> None:
    draws = [Sampling(temperature, seed=seed).choose(LOGITS, 7) for seed in range(4000)]
    observed = np.bincount(draws, minlength=len(LOGITS))
    expected = 4000 * softmax(LOGITS.astype(np.float64) / temperature)
    assert (
        stats.chisquare(
            observed[expected > 1], expected[expected > 1] * observed[expected > 1].sum() / expected[expected > 1].sum()
        ).pvalue
        > 1e-3
    )


def test_draws_follow_the_softmax_across_positions_of_one_seed() -> None:
    sampling = Sampling(1.0, seed=3)
    observed = np.bincount([sampling.choose(LOGITS, position) for position in range(4000)], minlength=len(LOGITS))
    assert stats.chisquare(observed, 4000 * softmax(LOGITS.astype(np.float64))).pvalue > 1e-3


def test_top_k_keeps_the_k_most_likely() -> None:
    draws = {Sampling(2.0, top_k=3, seed=seed).choose(LOGITS, 0) for seed in range(300)}
    assert draws == {0, 6, 3}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    # probabilities: 0 and 6 have 0.34 each, 3 has 0.13: 0.7 needs all three
    draws = {Sampling(1.0, top_p=0.7, seed=seed).choose(LOGITS, 0) for seed in range(300)}
    assert draws == {0, 6, 3}
    assert {Sampling(1.0, top_p=0.3, seed=seed).choose(LOGITS, 0) for seed in range(50)} == {0}


@given(st.integers(0, 1000), st.floats(0.05, 3.0), st.integers(0, 50))
def test_leaving_out_hopeless_tokens_changes_no_choice(seed: int, temperature: float, position: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 8, 64).astype(np.float32)
    sampling = Sampling(temperature, seed=seed)
    everything = np.arange(64)
    scaled = logits.astype(np.float64) / temperature
    assert sampling.choose(logits, position) == int((scaled + sampling.noise(position, everything)).argmax())


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        Sampling(**options)  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 400),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    top_p=st.floats(1e-9, 1, exclude_max=True),
)
def test_a_nucleus_is_the_fewest_tokens_that_have_the_probability(
    seed: int, size: int, spread: float, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, size)
    chosen = Sampling(temperature=1, top_p=top_p)._nucleus(logits, np.arange(size))
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best_first = np.sort(probabilities)[::-1]
    assert sorted(probabilities[chosen], reverse=True) == best_first[: len(chosen)].tolist()
    assert best_first[: len(chosen) - 1].sum() < top_p + 1e-9
    assert best_first[: len(chosen)].sum() > top_p - 1e-9
