"""A head that is declared otherwise than it was trained: measuring its acceptance names the convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.checkpoint import BaseConfig, Checkpoint, RecyclerConfig
from recycle_onnx.checkpoint.heads import eagle, eagle3, medusa, mtp
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.recycler import ATTENTION, EMBEDDING_FIRST, WITHOUT_LAYERS
from recycle_onnx.files import read_json
from recycle_onnx.training.model import RecycleGPT
from tests.helpers.command import assert_refused, names, run
from tests.reference import trained_heads
from tests.reference.models import shared_folder

TAPS = ("layer.1", "layer.2", "layer.3")
EAGLE3 = RecyclerConfig(1, "llama", tap=TAPS, fusion="linear", join=ATTENTION, recycle="pre_norm")
SPECULATORS = {"speculators_model_type": "eagle3", "eagle_aux_hidden_state_layer_ids": [1, 2, 3]}


@dataclass(frozen=True)
class Case:
    """What a head was trained as, the format it is written in, and what its config adds to say so."""

    trained: RecyclerConfig
    form: HeadFormat
    config: dict[str, Any]
    convention: str | None


EAGLE = RecyclerConfig(
    1, "llama", norms_before_projection=(), final_norm=False, recycle="pre_norm", first_norm=False
)  # fmt: skip
MEDUSA = RecyclerConfig(join=None, places=2, blocks=2, projection_bias=True, **WITHOUT_LAYERS)
MTP = {"speculators_model_type": "mtp"}
CASES = {
    "eagle3, declared right": Case(EAGLE3, eagle3.FORMAT, SPECULATORS, None),
    "eagle3, outputs of layers for their inputs": Case(
        EAGLE3, eagle3.FORMAT, {**SPECULATORS, "eagle_aux_hidden_state_layer_ids": [2, 3, 4]}, "tap"
    ),
    "eagle3, a residual before its norm": Case(
        replace(EAGLE3, residual="normed_hidden_state"), eagle3.FORMAT, SPECULATORS, "residual"
    ),
    "eagle3, the state after the norm": Case(
        EAGLE3, eagle3.FORMAT, {**SPECULATORS, "norm_output": True}, "recycle"
    ),
    "eagle, the state before the final norm": Case(replace(EAGLE, tap=("final_pre",)), eagle.FORMAT, {}, "tap"),
    "mtp, the other order": Case(
        RecyclerConfig(1, concat=EMBEDDING_FIRST[::-1]), mtp.SPECULATORS, MTP, "concat"
    ),
    "mtp, a layer earlier": Case(
        RecyclerConfig(1, tap=("layer.4",)), mtp.SPECULATORS, MTP, "tap"
    ),
    "medusa, declared right": Case(MEDUSA, medusa.FORMAT, {}, None),
    "medusa, a layer earlier": Case(replace(MEDUSA, tap=("layer.4",)), medusa.FORMAT, {}, "tap"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Path:
    return shared_folder("models/stories260K")


@pytest.fixture(scope="module")
def trained(base: Path) -> Callable[[RecyclerConfig], RecycleGPT]:
    """Gives a module of some conventions, trained once for all cases that differ in what is declared of it."""
    models: dict[str, RecycleGPT] = {}

    def of(config: RecyclerConfig) -> RecycleGPT:
        key = repr(config)
        if key not in models:
            models[key] = trained_heads.trained(base, config)
        return models[key]

    return of


def described(base: Path) -> BaseConfig:
    with Checkpoint.open(base, base_only=True) as opened:
        return opened.base


@pytest.mark.parametrize("name", CASES)
def test_measuring_names_the_convention_that_is_declared_wrong(
    name: str, base: Path, trained: Callable[[RecyclerConfig], RecycleGPT], tmp_path: Path
) -> None:
    case = CASES[name]
    model = trained(case.trained)
    inner = {"transformer_layer_config": trained_heads.layer_config(described(base))}
    head = trained_heads.write_head(tmp_path / "head", model, case.form, {**case.config, **inner})
    result = run("attach", base, tmp_path / "out", "--head", head)
    if case.convention is None:
        assert result.exit_code == 0, result.output
        return
    assert_refused(result, 2, case.convention, "--accept-measured")
    assert names(tmp_path) == ["head"]
    result = run("attach", base, tmp_path / "out", "--head", head, "--accept-measured")
    assert result.exit_code == 0, result.output
    about = read_json(tmp_path / "out" / "recycler" / "config.json")["read_from"]
    changed = {name for name, value in about["taken"].items() if value != about["declared"][name]}
    assert changed == {case.convention}
