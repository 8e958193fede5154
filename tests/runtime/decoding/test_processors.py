"""Under every control each lossless strategy gives the text of `full`: a row is processed with its own prefix."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import recycle_onnx
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export import DraftVocabulary, ExportOptions, export
from recycle_onnx.runtime.decoding.chooser import ProcessedChooser, built_in
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.processors import CountPenalty, Ids
from recycle_onnx.runtime.decoding.run import Run
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.decoding.strategies import Plan
from recycle_onnx.runtime.generation import Generation
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.campaigns import examples
from tests.helpers.controls import Wheel, WheelFollower, moody, obeys_the_wheel, settings
from tests.helpers.prompts import story_prompts

VOCABULARY = 32
PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)
PLANS = [
    *({"strategy": "verify", "chain": chain} for chain in (1, 2, 3, 4)),
    {"strategy": "verify", "chain": 3, "min_confidence": 0.1},
    {"strategy": "lookup"},
    {"strategy": "auto"},
]


@pytest.fixture(scope="module", params=["every token", "a draft vocabulary"])
def dice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model of 32 tokens with a random module, which knows all of them or 16."""
    folder = tmp_path_factory.mktemp("dice")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(vocab_size=VOCABULARY), seed=11)
    (folder / "text").write_text(tiny.TEXT)
    draft = DraftVocabulary(16, folder / "text") if "draft" in request.param else None
    export(folder / "model", folder / "bundle", ExportOptions(draft_vocabulary=draft))
    return recycle_onnx.load(folder / "bundle", threads=1)


@given(prompt=PROMPTS, controls=settings(VOCABULARY), plan=st.sampled_from(PLANS))
@hypothesis_settings(max_examples=examples(150))
def test_every_strategy_gives_the_text_of_full_under_every_control(
    dice: Model, prompt: list[int], controls: dict[str, Any], plan: dict[str, Any]
) -> None:
    outcomes = []
    for options in ({"strategy": "full"}, plan):
        generation = dice.stream(prompt, **controls, **options)
        try:
            for _ in generation:
                pass
            reason = generation.finish_reason
        except RecycleError as error:  # no repetition of single tokens may leave nothing: so it does everywhere
            reason = str(error)
        outcomes.append(([(token.id, token.text) for token in generation.tokens], reason))
    assert outcomes[0] == outcomes[1]


EVERYTHING: dict[str, Any] = {
    "max_new_tokens": 40, "seed": 5, "repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2,
    "no_repeat_ngram_size": 3, "logit_bias": {261: 1.0}, "min_new_tokens": 10, "min_p": 0.02, "top_k": 50,
    "top_p": 0.95,
}  # fmt: skip


@pytest.fixture(scope="module", params=[0.0, 0.8])
def controlled(request: pytest.FixtureRequest, sample_model: Model) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """All controls at once, and what `full` writes under them."""
    controls = {**EVERYTHING, "temperature": request.param}
    plain = {**controls, "processors": [Wheel()], "strategy": "full"}
    return controls, {prompt: sample_model.generate(prompt, **plain).tokens for prompt in story_prompts(200)[::40]}


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_proposals_are_still_accepted(
    sample_model: Model, plan: dict[str, Any], controlled: tuple[dict[str, Any], dict[str, list[int]]]
) -> None:
    """On a trained module, with everything at once; and what was read on guesses is taken back."""
    accepted, wheel = 0, Wheel()
    controls, texts = controlled
    for prompt, tokens in texts.items():
        result = sample_model.generate(prompt, **controls, processors=[wheel], **plan)
        assert result.tokens == tokens
        assert obeys_the_wheel(result.tokens)
        accepted += result.stats.accepted
    assert wheel.started == 5
    if plan["strategy"] == "verify":
        assert accepted > 20
        assert (wheel.rollbacks > 0) == (plan["chain"] > 1)


@pytest.mark.parametrize(
    "said", [[VOCABULARY], [-1], [3, 10**9], np.array([3, 4]), np.array([], np.int64), (), [np.int64(5)]], ids=str
)
@pytest.mark.parametrize("strategy", ["verify", "lookup", "auto"])
def test_whatever_is_foretold_the_text_stays(dice: Model, said: Any, strategy: str) -> None:
    class Odd(WheelFollower):
        def fast_forward(self) -> Any:
            return said

        def fitting(self, tokens: list[int]) -> int:
            return len(self.read) % 5 - 2

    class Oracle(Wheel):
        def start(self, prompt: Ids) -> Odd:
            return Odd(self, len(prompt))

    controls: dict[str, Any] = {"max_new_tokens": 20, "stop_ids": [], "processors": [Oracle()]}
    expected = dice.generate([1, 2, 1, 2], strategy="full", **controls)
    assert dice.generate([1, 2, 1, 2], strategy=strategy, **controls).tokens == expected.tokens


class Stale(ProcessedChooser):
    """The mistake: every row of a full step is processed with the prefix of its first one."""

    decoder: Decoder
    runs = -1
    frozen = 0

    def _prefix(self, position: int) -> Ids:
        if hasattr(self, "decoder"):
            if self.decoder.full.runs != self.runs:
                self.runs, self.frozen = self.decoder.full.runs, position
            position = self.frozen
        return super()._prefix(position)


STRONG: list[dict[str, Any]] = [{"no_repeat_ngram_size": 2}, {"processors": [moody]}]


@pytest.mark.parametrize("controls", STRONG, ids=["no_repeat_ngram_size", "processors"])
def test_a_row_processed_with_another_prefix_would_be_seen(sample_model: Model, controls: dict[str, Any]) -> None:
    differing = 0
    config = sample_model.generation_config.updated(max_new_tokens=40, **controls)
    for prompt in story_prompts(200)[::20]:
        ids, decoder = sample_model.encode(prompt), sample_model.decoder("verify")
        processors = [*built_in(config, len(ids), ()), *config.processors]
        stale = Stale(Sampling(), processors, ids, 40, 2048)
        stale.decoder = decoder
        run = Run(decoder, Plan.make("verify", 3, 0.0), ids, stale, 40)
        tokens = [token.id for token in Generation(run, sample_model.tokenizer, "no", stop_ids=sample_model.stop_ids)]
        differing += tokens != sample_model.generate(prompt, config, strategy="full").tokens
    assert differing > 2


@pytest.mark.parametrize("strategy", ["full", "alternate", "verify", "lookup", "auto"])
def test_every_strategy_obeys(dice: Model, strategy: str) -> None:
    for seed in range(10):
        result = dice.generate(
            [3, 1, 4], strategy=strategy, max_new_tokens=40, temperature=1.0, seed=seed, stop_ids=[],
            no_repeat_ngram_size=2, logit_bias={7: float("-inf")}, processors=[Wheel()],
        )  # fmt: skip
        text = [3, 1, 4, *result.tokens]
        assert len(result.tokens) == 40
        assert max(Counter(pairwise(text)).values()) == 1
        assert 7 not in result.tokens
        assert obeys_the_wheel(result.tokens)


def test_the_module_misses_its_turn_where_it_knows_nothing_allowed(dice: Model) -> None:
    known = dice.bundle.manifest.draft_vocabulary
    if known is None:
        pytest.skip("it knows every token")
    controls: dict[str, Any] = {"logit_bias": dict.fromkeys(known, float("-inf")), "max_new_tokens": 20}
    expected = dice.generate([3, 1, 4], **controls, strategy="full")
    for strategy in ("alternate", "verify", "auto"):
        result = dice.generate([3, 1, 4], **controls, strategy=strategy)
        assert result.tokens == expected.tokens
        assert strategy == "auto" or not any(result.recycled)  # auto looks up as well
        assert strategy == "auto" or result.stats.proposed == 0


def test_a_processor_may_make_the_module_say_what_it_does_not_know(dice: Model) -> None:
    def only_31(ids: Any, logits: Any) -> Any:
        made = np.full_like(logits, -np.inf)
        made[31] = 0.0
        return made

    options: dict[str, Any] = {"processors": [only_31], "max_new_tokens": 9, "chain": 2, "min_confidence": 0.9}
    result = dice.generate([3, 1, 4], strategy="verify", **options)
    assert result.tokens == [31] * 9
    assert result.stats.accepted == 5


@pytest.mark.parametrize("strategy", ["full", "alternate", "verify", "auto"])
def test_where_nothing_is_allowed_it_is_said_and_the_model_is_usable(dice: Model, strategy: str) -> None:
    def nothing(ids: Any, logits: Any) -> Any:
        return logits if len(ids) < 6 else np.full_like(logits, -np.inf)

    generation = dice.stream([3, 1, 4], strategy=strategy, processors=[nothing], stop_ids=[])
    with pytest.raises(RecycleError, match=r"leave nothing to choose after 6 tokens \(the best logit is -inf\)"):
        list(generation)
    assert len(generation.result.tokens) == 3
    assert dice.generate([3, 1, 4], max_new_tokens=5).tokens


def test_processors_that_give_no_logits_are_named(dice: Model) -> None:
    for made, got in ((None, "NoneType"), (np.zeros(3), r"float64 \[3\]"), (np.zeros(VOCABULARY, int), "int64")):
        with pytest.raises(InputError, match=f"processor.*lambda.*gave {got}.*expected logits"):
            dice.generate([1], processors=[lambda ids, logits, made=made: made])


def test_processors_cannot_change_the_text(dice: Model) -> None:
    def rude(ids: Any, logits: Any) -> Any:
        ids[0] = 5
        return logits

    with pytest.raises(ValueError, match="read-only"):
        dice.generate([1, 2], processors=[rude])


@given(ids=st.lists(st.integers(0, 15), max_size=40), prompt=st.integers(0, 40), seed=st.integers(0, 100))
def test_presence_and_frequency_are_openais(ids: list[int], prompt: int, seed: int) -> None:
    """mu[j] -= c[j] * frequency + (c[j] > 0) * presence, c counting what was sampled before."""
    logits = np.random.default_rng(seed).normal(size=16).astype(np.float32)
    prompt = min(prompt, len(ids))
    expected = logits.copy()
    for token, count in Counter(ids[prompt:]).items():
        expected[token] -= count * 0.4 + 0.7
    found = CountPenalty(0.7, 0.4, prompt)(np.array(ids, np.int64), logits.copy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_text_does_not_end_before_min_new_tokens(sample_model: Model) -> None:
    prompt = "Once upon a time"
    usual = sample_model.generate(prompt, strategy="full")
    assert usual.finish_reason == "stop"
    least = len(usual.tokens) + 20
    longer = sample_model.generate(prompt, strategy="full", min_new_tokens=least)
    assert longer.tokens[: len(usual.tokens) - 1] == usual.tokens[:-1]
    assert len(longer.tokens) >= least
    assert not sample_model.stop_ids & set(longer.tokens[: least - 1])


def test_stop_ids_take_the_place_of_the_models_own(sample_model: Model, tmp_path: Path) -> None:
    prompt = "Once upon a time"
    usual = sample_model.generate(prompt)
    third = usual.tokens[2]
    assert sample_model.generate(prompt, stop_ids=[third]).tokens == usual.tokens[: usual.tokens.index(third) + 1]
    endless = sample_model.generate(prompt, stop_ids=[], max_new_tokens=len(usual.tokens) + 5)
    assert (endless.finish_reason, len(endless.tokens)) == ("length", len(usual.tokens) + 5)
