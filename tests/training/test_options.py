"""The options of a training: each declared once, checked, and on the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from recycle_onnx.cli.train import train
from recycle_onnx.declaration import declared
from recycle_onnx.errors import InputError
from recycle_onnx.training.options import TrainingOptions

OF_THE_VERB = {"checkpoint", "data", "held_out", "resume", "estimate", "plot", "json_"}


def test_every_option_is_declared_and_on_the_command_line_with_the_same_default() -> None:
    declarations = declared(TrainingOptions)
    assert [field.name for field in fields(TrainingOptions)] == list(declarations)
    parameters = {parameter.name: parameter for parameter in train.params}
    assert parameters.keys() - OF_THE_VERB == declarations.keys()
    for name, about in declarations.items():
        assert parameters[name].default == about.default, name
        assert about.help.endswith("."), name


def test_the_defaults_are_in_range() -> None:
    TrainingOptions().check()


@pytest.mark.parametrize(
    ("arguments", "joint"), [(["--joint"], True), (["--freeze-base"], False), ([], False)], ids=str
)
def test_the_base_is_frozen_unless_it_is_trained_too(arguments: list[str], joint: bool) -> None:
    context = train.make_context("train", ["folder", *arguments])
    assert context.params["joint"] is joint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps is 0; expected more than 0"),
        ({"tokens": 5, "minutes": 1.0}, "expected one budget, found --tokens and --minutes"),
        ({"depth": 9}, "--depth is 9; expected 1 to 8"),
        ({"clip": 0.0}, "--clip is 0.0; expected more than 0"),
        ({"clip": float("nan")}, "--clip is nan"),
        ({"batch_size": 0}, "--batch-size is 0; expected at least 1"),
        ({"batch_size": 2.5}, "--batch-size is 2.5"),
        ({"cache_gb": -1.0}, r"--cache-gb is -1.0; expected 0 \(no cache\) or more"),
        ({"learning_rate": 1.0}, "--lr is 1.0; expected a number between 0 and 1"),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd'; expected one of: adamw, muon"),
        ({"precision": "fp16"}, "--precision is 'fp16'; expected one of: fp32, bf16"),
        ({"field": 3}, "--field is 3; expected a string"),
        ({"joint": 1}, "--joint is 1; expected True or False"),
        ({"own_tokens": 3}, "--own-tokens is 3; expected at least 256, a window"),
        ({"joint": True, "regenerate": True}, "--regenerate is for a frozen base"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(**change).check()
