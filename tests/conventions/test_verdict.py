"""What follows from a measurement of conventions, and which other readings of a module are tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.checkpoint import Checkpoint, RecyclerConfig
from recycle_onnx.checkpoint.heads.held import HeldTensors
from recycle_onnx.checkpoint.recycler import ATTENTION
from recycle_onnx.conventions.readings import MeasuredModule, Reading, readings
from recycle_onnx.conventions.verdict import Compared, ConventionVerdict, compared, settled
from recycle_onnx.errors import InputError

CONFIG = RecyclerConfig(1)
MODULE = MeasuredModule(CONFIG, HeldTensors({}))
COUNT = 2000


def other(convention: str, wins: int, losses: int, shift: int = 0) -> Compared:
    """Another reading that is right on `wins` proposals where the declared one is wrong, and the other way round."""
    ours, theirs = (np.arange(COUNT) % 2 == 0 for _ in range(2))  # half of them, both right
    ours[1 : 2 * losses : 2] = True
    theirs[COUNT - 2 * wins + 1 :: 2] = True
    return compared(Reading(convention, "otherwise", CONFIG, shift=shift), ours, theirs)


def verdict(*others: Compared) -> ConventionVerdict:
    return ConventionVerdict(MODULE, 0.5, 0.4, COUNT, others)


@pytest.mark.parametrize(
    ("wins", "losses", "better"),
    [(100, 20, True), (60, 40, False), (20, 100, False), (9, 0, False), (500, 380, True), (0, 0, False)],
)
def test_a_reading_is_better_by_more_than_noise_and_by_enough(wins: int, losses: int, better: bool) -> None:
    assert other("concat", wins, losses).better == better


def test_no_reading_of_a_hopeless_module_is_better() -> None:
    ours, theirs = np.zeros(COUNT, bool), np.zeros(COUNT, bool)
    theirs[: COUNT // 12] = True
    assert not compared(Reading("concat", "otherwise", CONFIG), ours, theirs).better


def test_what_only_chains_show_counts_last() -> None:
    best = verdict(other("recycle", 400, 0), other("residual", 100, 10), other("tap", 60, 50)).best
    assert best is not None
    assert best.reading.convention == "residual"
    best = verdict(other("recycle", 400, 0), other("residual", 10, 100)).best
    assert best is not None
    assert best.reading.convention == "recycle"


def test_a_better_reading_is_refused_with_its_figures_or_taken() -> None:
    better = verdict(other("tap", 300, 100))
    with pytest.raises(InputError, match=r"HEAD: 50.0% of 2000 .* tap read as otherwise: 65.0% against 55.0%; take"):
        settled(better, "HEAD", accept=False)
    assert settled(better, "HEAD", accept=True) == MODULE
    assert settled(verdict(other("tap", 100, 100)), "HEAD", accept=False) is None


def test_what_no_config_can_say_is_refused_always() -> None:
    for accept in (False, True):
        with pytest.raises(InputError, match="a module cannot be read so"):
            settled(verdict(other("position", 300, 100, shift=1)), "HEAD", accept=accept)


def tried(folder: Path, config: RecyclerConfig) -> dict[str, list[str]]:
    """The values that are tried, by convention."""
    with Checkpoint.open(folder, base_only=True) as opened:
        by_name: dict[str, list[str]] = {}
        for reading in readings(config, opened.base_weights):
            by_name.setdefault(reading.convention, []).append(reading.value)
    return by_name


def test_each_doubtful_convention_is_flipped_alone(tiny_checkpoint: Path) -> None:
    usual = tried(tiny_checkpoint, CONFIG)
    assert usual["concat"] == ["hidden_state + embedding"]
    assert usual["tap"] == ["final_pre", "layer.1"]
    assert usual["recycle"] == ["pre_norm"]
    assert len(usual["position"]) == 2
    assert "residual" not in usual
    bare = tried(tiny_checkpoint, RecyclerConfig(1, final_norm=False, recycle="pre_norm"))
    assert bare["final_norm"] == ["the base's own"]
    assert "recycle" not in bare
    fused = RecyclerConfig(1, tap=("layer.1", "final_pre"), fusion="linear", join=ATTENTION)
    assert tried(tiny_checkpoint, fused)["tap"] == ["final_pre + layer.1"]
    assert tried(tiny_checkpoint, fused)["residual"] == ["normed_hidden_state"]
