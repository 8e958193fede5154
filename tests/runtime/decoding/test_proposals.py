"""Chains and prompt lookup: the text of `full` in fewer full runs, whoever proposes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding.auto import LONGEST
from recycle_onnx.runtime.decoding.proposals import LookupProposer, ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.settings import LONGEST_CHAIN
from tests.helpers import tiny
from tests.helpers.campaigns import LONG, examples
from tests.helpers.full_texts import FullTexts
from tests.helpers.prompts import LONG_STORY, story_prompts

VOCABULARY = 16


@pytest.fixture(scope="module")
def dice(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model of 16 tokens with a random module of two layers."""
    folder = tmp_path_factory.mktemp("dice")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(vocab_size=VOCABULARY), seed=5, num_layers=2)
    export(folder / "model", folder / "bundle")
    return recycle_onnx.load(folder / "bundle", threads=1)


@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
    count=st.integers(1, 40),
    strategy=st.sampled_from(["auto", "verify", "lookup"]),
    chain=st.integers(1, LONGEST_CHAIN),
    confidence=st.sampled_from([0.0, 0.2]),
    temperature=st.sampled_from([0.0, 0.8, 1.2]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=examples(150))
def test_every_proposer_and_chain_gives_the_text_of_full(
    dice: Model,
    prompt: list[int],
    count: int,
    strategy: str,
    chain: int,
    confidence: float,
    temperature: float,
    seed: int,
) -> None:
    sampling = {"max_new_tokens": count, "temperature": temperature, "seed": seed}
    first = dice.generate(prompt, strategy="full", **sampling)
    chain = min(chain, LONGEST) if strategy == "auto" else chain
    plan = {"chain": chain, "min_confidence": 0.0 if strategy == "lookup" else confidence}
    second = dice.generate(prompt, strategy=strategy, **plan, **sampling)
    assert (first.tokens, first.finish_reason) == (second.tokens, second.finish_reason)
    assert second.stats.full_runs <= first.stats.full_runs
    assert second.stats.accepted <= second.stats.proposed


@pytest.mark.parametrize("chain", [1, 2, 3, 5])
def test_longer_chains_take_fewer_full_runs_on_the_sample(
    sample_model: Model, full_texts: FullTexts, chain: int
) -> None:
    runs = new = 0
    for prompt in story_prompts(200)[:: 8 if LONG else 20]:
        result = sample_model.generate(prompt, strategy="verify", chain=chain, max_new_tokens=60)
        assert result.tokens == full_texts.tokens(prompt, 60)
        runs, new = runs + result.stats.full_runs, new + result.stats.new_tokens
    assert new / runs > {1: 1.7, 2: 2.1, 3: 2.3, 5: 2.4}[chain]


def test_a_chain_starts_from_true_hidden_states_every_cycle(sample_model: Model) -> None:
    """Its first proposals are those of single recycled tokens: what it wrote on guesses is forgotten."""
    prompt = sample_model.encode("Once upon a time, there was a")
    firsts = []
    for chain in (1, 4):
        decoder = sample_model.decoder("verify")
        token = int(decoder.prefill(prompt)[-1].argmax())
        proposer = ModuleProposer(decoder, Sampling(), chain, 0.0)
        position, seen = len(prompt) + 1, []
        for _ in range(12):
            seen.append(proposer.propose([token], position, 30)[0])
            assert decoder.recycler is not None
            assert decoder.recycler.length == position - 1
            token = int(decoder.full_step([token], keep=1)[-1].argmax())
            position += 1
        firsts.append(seen)
    assert firsts[0] == firsts[1]


def test_an_unsure_module_proposes_nothing(sample_model: Model) -> None:
    prompt = "Once upon a time, there was a"
    results = [
        sample_model.generate(prompt, strategy="verify", chain=4, min_confidence=confidence, max_new_tokens=80)
        for confidence in (0.0, 0.5, 0.999)
    ]
    assert results[0].tokens == results[1].tokens == results[2].tokens
    proposed = [result.stats.proposed for result in results]
    assert proposed[0] > proposed[1] > proposed[2]
    rates = [result.stats.acceptance_rate or 1.0 for result in results[:2]]
    assert rates[1] > rates[0]


def test_lookup_copies_what_stands_in_the_prompt(sample_model: Model) -> None:
    opening = "Anna and Ben are friends. They like to"  # from where the sample soon repeats itself
    story = opening + sample_model.generate(opening, strategy="full", max_new_tokens=120).text
    result = sample_model.generate(story, strategy="lookup", chain=6, max_new_tokens=60)
    assert result.tokens == sample_model.generate(story, strategy="full", max_new_tokens=60).tokens
    assert result.stats.recycle_runs == 0
    assert result.stats.new_tokens > 2 * result.stats.full_runs


def followed(text: list[int], longest: int, shortest: int) -> int | None:
    """Where the longest earlier match of the text's end goes on, the latest one, found by looking everywhere."""
    for size in range(min(longest, len(text)), shortest - 1, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                return start + size
    return None


@given(text=st.lists(st.integers(0, 3), min_size=2, max_size=60), cut=st.integers(1, 59), chain=st.integers(1, 6))
def test_lookup_finds_the_latest_longest_match(text: list[int], cut: int, chain: int) -> None:
    cut = min(cut, len(text) - 1)
    proposer = LookupProposer(text[:cut], Sampling(), chain)
    found = proposer.propose(text[cut:], len(text), 100)
    start = followed(text, 4, 2)
    assert found == ([] if start is None else text[start : start + chain])


def test_a_prompt_of_several_chunks_can_start_a_chain(sample_model: Model) -> None:
    first, second = (
        sample_model.generate(LONG_STORY, max_new_tokens=50, strategy=strategy, chain=chain)
        for strategy, chain in (("full", None), ("verify", 3))
    )
    assert first.tokens == second.tokens


def test_random_weights_are_no_reason_to_fail(dice: Model) -> None:
    result = dice.generate([1, 2, 3], strategy="verify", chain=LONGEST_CHAIN, max_new_tokens=40)
    assert np.isfinite(result.stats.acceptance_rate or 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chain": 0}, "chain is 0; expected 1 to 15"),
        ({"chain": 5}, "chain is 5"),
        ({"chain": 16, "strategy": "verify"}, "chain is 16; expected 1 to 15"),
        ({"chain": 2, "strategy": "alternate"}, "has no chain"),
        ({"chain": 2, "strategy": "full"}, "has no chain"),
        ({"min_confidence": 1.0}, "min-confidence is 1.0"),
        ({"min_confidence": -0.1}, "min-confidence is -0.1"),
        ({"min_confidence": 0.5, "strategy": "lookup"}, "knows no confidence"),
    ],
)
def test_chains_out_of_range_are_refused(sample_model: Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_model.generate("a cat", **options)
