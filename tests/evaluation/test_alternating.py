"""A continuation's likelihood under decoding by turns, against that decoding itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recycle_onnx.evaluation.alternating import Decoding, verdict
from recycle_onnx.evaluation.scoring import Predictions, Score, score
from recycle_onnx.runtime.model import Model
from tests.helpers.prompts import LONG_STORY, story_prompts

FULL, MODULE = [1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 40.0, 80.0]
TOKENS = [7, 7, 7, 7]


def predictions(nats: list[float], best: list[int] | None = None) -> Predictions:
    return Predictions(np.array(nats), np.array(best or [7] * len(nats)), np.full(len(nats), 100.0))


@pytest.mark.parametrize(
    ("decoding", "module", "nats"),
    [
        ("full", MODULE, 1 + 2 + 4 + 8),
        ("full_first", MODULE, 1 + 20 + 4 + 80),
        ("module_first", MODULE, 10 + 2 + 40 + 8),
        ("full_first", MODULE[1:], 1 + 20 + 4 + 80),
        ("module_first", MODULE[1:], 1 + 2 + 40 + 8),  # nothing stands two tokens before the first
        ("full_first", [10.0, math.inf, 40.0, 80.0], 1 + 100 + 4 + 80),
    ],
)
def test_the_halves_take_turns(decoding: Decoding, module: list[float], nats: float) -> None:
    found = verdict(Score(predictions(FULL), predictions(module)), TOKENS, decoding)
    assert found == (-nats, True, math.inf in module)


@pytest.mark.parametrize(("decoding", "greedy"), [("full", False), ("full_first", True), ("module_first", False)])
def test_greedy_asks_the_half_whose_turn_it_is(decoding: Decoding, greedy: bool) -> None:
    found = Score(predictions(FULL, [7, 0, 7, 0]), predictions(MODULE, [0, 7, 0, 7]))
    assert verdict(found, TOKENS, decoding).greedy is greedy


def test_without_a_module_the_full_model_says_all() -> None:
    assert verdict(Score(predictions(FULL), None), TOKENS, "full_first").log_probability == -15


@pytest.mark.parametrize(("strategy", "decoding"), [("full", "full"), ("alternate", "full_first")])
def test_what_a_strategy_says_is_greedy_to_its_verdict(strategy: str, decoding: Decoding, sample_model: Model) -> None:
    for text in story_prompts(6):
        prompt = sample_model.encode(text)[:12]
        said = sample_model.generate(prompt, strategy=strategy, max_new_tokens=20).tokens
        assert verdict(score(sample_model, [*prompt, *said], len(prompt)), said, decoding).greedy
        for place in range(len(said)):
            changed = [*said[:place], said[place] + 1, *said[place + 1 :]]
            assert not verdict(score(sample_model, [*prompt, *changed], len(prompt)), changed, decoding).greedy


def test_the_likelihood_is_that_of_the_steps_of_decoding(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:23]
    first = 12
    decoder, nats = sample_model.decoder("alternate"), 0.0

    def add(logits: np.ndarray, token: int) -> None:
        nonlocal nats
        odds = np.exp(logits[-1].astype(np.float64))
        nats -= math.log(odds[token] / odds.sum())

    add(decoder.prefill(ids[:first]), ids[first])
    add(decoder.start_recycling(ids[first]), ids[first + 1])
    for place in range(first + 2, len(ids) - 1, 2):
        add(decoder.full_step(ids[place - 2 : place], keep=1), ids[place])
        add(decoder.recycle_step(ids[place - 1 : place + 1]), ids[place + 1])
    add(decoder.full_step(ids[-3:-1], keep=1), ids[-1])
    found = verdict(score(sample_model, ids, first), ids[first:], "full_first")
    assert found.log_probability == pytest.approx(-nats, abs=1e-3)
    assert found.log_probability != pytest.approx(
        verdict(score(sample_model, ids, first), ids[first:], "full")[0], abs=1e-3
    )
