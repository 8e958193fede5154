"""Strategies against each other, and the distribution they draw from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import recycle_onnx
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding import strategies
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.campaigns import LONG, examples
from tests.helpers.full_texts import FullTexts
from tests.helpers.prompts import story_prompts

VOCABULARY = 16
SEEDS = 20_000 if LONG else 5_000
PROMPT = [3, 1, 4, 1, 5]
VERIFY = strategies.Plan("verify")


@pytest.fixture(scope="module")
def dice(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model of 16 tokens with a random module."""
    folder = tmp_path_factory.mktemp("dice")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(vocab_size=VOCABULARY), seed=11)
    export(folder / "model", folder / "bundle")
    return recycle_onnx.load(folder / "bundle", threads=1)


def test_verify_gives_the_tokens_of_full_on_prompts_of_the_sample(sample_model: Model, full_texts: FullTexts) -> None:
    accepted = 0
    for prompt in story_prompts(200)[:: 1 if LONG else 8]:
        result = sample_model.generate(prompt, max_new_tokens=24, strategy="verify")
        assert result.tokens == full_texts.tokens(prompt, 24), prompt
        accepted += result.stats.accepted
    assert accepted > (200 if LONG else 100)


@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
    count=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=examples(100))
def test_verify_equals_full_for_any_prompt_and_sampling(
    dice: Model, prompt: list[int], count: int, temperature: float, top_p: float, seed: int
) -> None:
    options = {"max_new_tokens": count, "temperature": temperature, "top_p": top_p, "seed": seed}
    first, second = (dice.generate(prompt, strategy=strategy, **options) for strategy in ("full", "verify"))
    assert first.tokens == second.tokens
    assert (first.text, first.finish_reason) == (second.text, second.finish_reason)
    assert second.stats.full_runs + second.stats.accepted >= second.stats.new_tokens
    assert sum(second.recycled) == second.stats.accepted


@pytest.mark.parametrize("count", range(1, 12))
def test_alternate_takes_one_full_run_for_two_tokens(dice: Model, count: int) -> None:
    result = dice.generate(PROMPT, max_new_tokens=count, strategy="alternate")
    made = len(result.tokens)
    assert (result.stats.full_runs, result.stats.recycle_runs) == (-(-made // 2), made // 2)
    assert result.recycled == [index % 2 == 1 for index in range(made)]


def test_full_takes_one_run_a_token(dice: Model) -> None:
    result = dice.generate(PROMPT, max_new_tokens=9, strategy="full")
    assert (result.stats.full_runs, result.stats.recycle_runs) == (len(result.tokens), 0)


def first_token_comes_before_the_module_reads_the_prompt(model: Model, strategy: str) -> bool:
    generation = model.stream(PROMPT, strategy=strategy, max_new_tokens=4)
    next(generation)
    assert generation.decoder.recycler is not None
    return generation.decoder.recycler.runs == 0


@pytest.mark.parametrize("strategy", ["alternate", "verify"])
def test_the_first_token_does_not_wait_for_the_module(dice: Model, strategy: str) -> None:
    assert first_token_comes_before_the_module_reads_the_prompt(dice, strategy)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def exact_distribution(model: Model) -> NDArray[np.float64]:
    """P(second token, third token | prompt), the first one summed out, from the full model's own logits."""

    def following(tokens: list[int]) -> NDArray[np.float64]:
        return softmax(model.decoder("full").prefill(tokens)[0])

    joint = np.zeros((VOCABULARY, VOCABULARY))
    for first, p_first in enumerate(following(PROMPT)):
        for second, p_second in enumerate(following([*PROMPT, first])):
            joint[second] += p_first * p_second * following([*PROMPT, first, second])
    return joint


def drawn(decoder: Decoder, samplings: Iterator[Sampling]) -> tuple[NDArray[np.int64], int]:
    """How often each pair came as second and third token, and how many second tokens were recycled."""
    counts = np.zeros((VOCABULARY, VOCABULARY), np.int64)
    recycled = 0
    for sampling in samplings:
        decoder.keep(0)
        choices = list(strategies.run(VERIFY, decoder, PROMPT, sampling, 3, strategies.Counts()))
        counts[choices[1].id, choices[2].id] += 1
        recycled += choices[1].recycled
    return counts, recycled


def p_value(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Chi-square over cells of at least five expected draws; the rest is one cell."""
    wanted = observed.sum() * expected.ravel()
    large = wanted >= 5
    cells = np.append(wanted[large], wanted[~large].sum() + 1e-9)
    found = np.append(observed.ravel()[large], observed.ravel()[~large].sum())
    return float(stats.chisquare(found, cells * found.sum() / cells.sum()).pvalue)


class BrokenSampling(Sampling):
    """Noise that ignores the token id: every seed takes the most likely token."""

    def noise(self, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        return super().noise(position, np.zeros_like(ids))


def test_recycled_sampling_draws_from_the_full_models_distribution(dice: Model) -> None:
    expected = exact_distribution(dice)
    decoder = dice.decoder("verify")
    observed, recycled = drawn(decoder, (Sampling(1.0, seed=seed) for seed in range(SEEDS)))
    assert 0 < recycled < SEEDS
    assert p_value(observed, expected) > 1e-3
    broken, _ = drawn(decoder, (BrokenSampling(1.0, seed=seed) for seed in range(2000)))
    assert p_value(broken, expected) < 1e-6


def test_a_bundle_without_a_module_runs_what_needs_none(tmp_path: Path) -> None:
    export(tiny.write_base(tmp_path / "base", tiny.tiny_config()), tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    assert model.strategies == ("auto", "full", "lookup")
    assert model.generate("a cat", max_new_tokens=4).strategy == "auto"
    with pytest.raises(recycle_onnx.InputError, match="needs a recyclable module"):
        model.generate("a cat", strategy="verify")
