"""`auto`: the text of `full`, and the choice that costs and acceptance call for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recycle_onnx
from recycle_onnx.export import export
from recycle_onnx.runtime.decoding.auto import LONGEST, MARGIN, AutoProposer, Costs, Rates, fastest
from recycle_onnx.runtime.decoding.decoder import WINDOW
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.campaigns import LONG
from tests.helpers.command import run
from tests.helpers.full_texts import FullTexts
from tests.helpers.prompts import story_prompts


def costs(**milliseconds: float) -> Costs:
    made = Costs()
    for kind, value in milliseconds.items():
        for _ in range(3):
            made.add(kind, value / 1e3)
    return made


def rates(module: float, lookup: float) -> dict[str, Rates]:
    """So often accepted at every place."""
    return {name: Rates([rate] * LONGEST, [1.0] * LONGEST) for name, rate in (("module", module), ("lookup", lookup))}


LAPTOP = {"full_1": 30.0, "full_2": 31.5, "full_3": 41.0, "full_4": 49.0, "full_5": 58.0, "module_1": 3.0}


@pytest.mark.parametrize(
    ("module", "lookup", "found", "expected"),
    [
        (0.0, 0.0, 4, ("nothing", 0)),
        (0.1, 0.0, 0, ("nothing", 0)),
        (0.8, 0.0, 4, ("module", 1)),
        (0.6, 0.9, 0, ("module", 1)),
        (0.3, 0.95, 4, ("lookup", 4)),
        (0.3, 0.6, 4, ("lookup", 1)),
        (0.95, 0.0, 0, ("module", 4)),
    ],
)
def test_the_choice_follows_costs_and_acceptance(
    module: float, lookup: float, found: int, expected: tuple[str, int]
) -> None:
    assert fastest(costs(**LAPTOP), rates(module, lookup), {"lookup": found, "module": LONGEST}) == expected


@given(
    module=st.floats(0, 1),
    lookup=st.floats(0, 1),
    found=st.integers(0, LONGEST),
    two=st.floats(1, 3),
    step=st.floats(0.01, 2),
)
def test_no_choice_promises_less_than_the_full_model_alone(
    module: float, lookup: float, found: int, two: float, step: float
) -> None:
    known = costs(full_1=1.0, full_2=two, module_1=step)
    believed = rates(module, lookup)
    source, chain = fastest(known, believed, {"lookup": found, "module": LONGEST})
    if source == "nothing":
        return
    seconds = known.full(1 + chain) + (known.module(chain) if source == "module" else 0.0)
    assert believed[source].tokens(chain)[-1] / seconds > MARGIN / (known.get("full_1") or 0.0)
    assert source != "lookup" or chain <= found


def test_nothing_is_chosen_before_the_full_model_was_timed() -> None:
    assert fastest(costs(full_2=1.0, module_1=0.1), rates(1.0, 1.0), {"module": 4, "lookup": 4}) == ("nothing", 0)


def test_the_first_step_of_a_kind_is_not_counted_and_one_slow_step_is_forgiven() -> None:
    made = Costs()
    made.add("full_1", 9.0)
    assert made.get("full_1") is None
    for seconds in (1.0, 1.1, 50.0):
        made.add("full_1", seconds)
    assert made.get("full_1") == 1.1


def test_acceptance_fades_and_is_kept_by_place() -> None:
    learnt = Rates.prior("module")
    for _ in range(60):
        learnt.learn(3, 1)  # the first right, the second wrong, the third never tried
    assert learnt.tokens(1)[-1] > 1.9
    assert learnt.tokens(2)[-1] < learnt.tokens(1)[-1] + 0.1
    for _ in range(60):
        learnt.learn(1, 0)
    assert learnt.tokens(1)[-1] < 1.1


@pytest.mark.parametrize("count", [1, 10, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 2])
def test_a_module_that_was_off_comes_back_as_if_it_had_never_been(sample_model: Model, count: int) -> None:
    prompt = sample_model.encode("Once upon a time, there was a")
    proposals = []
    for postpones in (False, True):
        decoder = sample_model.decoder("verify")
        token = int(decoder.prefill(prompt)[-1].argmax())
        proposer = ModuleProposer(decoder, Sampling(), 3, 0.0)
        position = len(prompt) + 1
        proposer.propose([token], position, 30)
        for index in range(count):
            token = int(decoder.full_step([token], keep=1)[-1].argmax())
            position += 1
            if postpones and index < count - 1:
                proposer.postpone([token])
            else:
                found = proposer.propose([token], position, 30)
        assert decoder.recycler is not None
        assert decoder.recycler.length == position - 1
        proposals.append(found)
    assert proposals[0] == proposals[1]


def test_auto_is_the_default_and_gives_the_text_of_full(sample_model: Model, full_texts: FullTexts) -> None:
    for index, prompt in enumerate(story_prompts(200)[:: 8 if LONG else 20]):
        options = {"max_new_tokens": 60, "temperature": (0.0, 0.9)[index % 2], "seed": index}
        result = sample_model.generate(prompt, **options)
        assert (result.strategy, result.lossless) == ("auto", "exact")
        assert result.tokens == full_texts.tokens(prompt, **options)
        assert result.decisions is not None
        assert sum(result.decisions["chosen"].values()) >= result.stats.full_runs - 2


def test_a_random_module_is_left_alone(tmp_path: Path) -> None:
    config = tiny.tiny_config(context_length=256)
    export(tiny.write_checkpoint(tmp_path / "model", config, seed=3), tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    model.stop_ids = frozenset()
    options = {"max_new_tokens": 64, "temperature": 1.0}
    full, auto = (model.generate("the cat", strategy=strategy, **options) for strategy in ("full", "auto"))
    assert full.tokens == auto.tokens
    assert auto.stats.full_runs <= 1.05 * full.stats.full_runs
    assert auto.stats.recycle_runs < full.stats.full_runs / 2


def test_without_a_module_there_is_lookup(tmp_path: Path) -> None:
    export(tiny.write_base(tmp_path / "base", tiny.tiny_config(context_length=256)), tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    assert model.strategies == ("auto", "full", "lookup")
    result = model.generate("the cat sat on the mat. " * 4, max_new_tokens=80)
    assert result.tokens == model.generate("the cat sat on the mat. " * 4, strategy="full", max_new_tokens=80).tokens
    assert result.stats.recycle_runs == 0


def test_generate_says_what_auto_chose_and_why(tiny_bundle: Path) -> None:
    result = run("generate", tiny_bundle, "the cat", "-n", 40)
    assert result.exit_code == 0
    [line] = [line for line in result.stderr.splitlines() if line.startswith("auto chose")]
    assert "steps in ms: full model on 1 token " in line


def test_lookups_are_learnt_from_while_they_are_not_trusted(sample_model: Model) -> None:
    prompt = list(range(10, 30))
    decoder = sample_model.decoder("lookup")
    proposer = AutoProposer(decoder, Sampling(), prompt, LONGEST)
    proposer.rates["lookup"] = Rates([0.0] * LONGEST, [4.0] * LONGEST)

    def proposals(text: list[int]) -> list[list[int]]:
        made: list[list[int]] = [[]]
        for position, token in enumerate(text, start=100):
            decoder.full.seconds = 0.03 * (1 + 0.2 * len(made[-1]))
            made.append(proposer.propose([token], position, 50))
        return made

    copied = proposals(3 * prompt)
    assert not any(copied[:5])
    assert len(copied[-1]) > 1
    assert copied[-1] == prompt[: len(copied[-1])]
    noise = np.random.default_rng(0).integers(0, 8, 300).tolist()  # old pairs everywhere, and nothing follows from them
    assert sum(map(bool, proposals(noise)[-50:])) <= 5
