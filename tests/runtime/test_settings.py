"""The declarations of settings, and what follows from them everywhere."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import click
import pytest
from click.testing import CliRunner

from recycle_onnx.batch import FIELDS
from recycle_onnx.cli import options
from recycle_onnx.declaration import declared
from recycle_onnx.errors import InputError
from recycle_onnx.kinds import Number
from recycle_onnx.runtime.config import GenerationConfig
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.decoding.strategies import DEFAULT_CHAIN
from recycle_onnx.runtime.settings import (
    ALIASES,
    FOREIGN,
    LONGEST_CHAINS,
    SETTINGS,
    STRATEGIES,
    Keywords,
    Settings,
    check,
    hint,
)  # fmt: skip


@click.command()
@options.controls
@options.logprobs("Shown.")
def command(**settings: Any) -> None:
    """A command with every setting."""


def test_every_setting_is_declared_with_help_and_its_default_is_in_range() -> None:
    assert [field.name for field in fields(Settings)] == list(SETTINGS)
    for name, about in SETTINGS.items():
        assert about.help.endswith("."), name
        assert about.default is None or about.kind.own(name, about.default) == about.default
        assert about.default is not None or about.unset, name


def test_keywords_have_the_types_of_the_fields() -> None:
    assert get_type_hints(Keywords) == get_type_hints(Settings)


def test_sampling_has_the_defaults_that_are_declared() -> None:
    for field in fields(Sampling):
        assert field.default == SETTINGS[field.name].default


def test_strategies_are_those_that_the_decoder_knows() -> None:
    assert set(STRATEGIES) >= LONGEST_CHAINS.keys()
    assert LONGEST_CHAINS.keys() == DEFAULT_CHAIN.keys()
    assert all(DEFAULT_CHAIN[name] <= longest for name, longest in LONGEST_CHAINS.items())


def test_help_lists_every_field_with_its_meaning_and_default() -> None:
    doc = inspect.getdoc(GenerationConfig)
    assert doc is not None
    for name, about in declared(GenerationConfig).items():
        assert f"{name}: {about.help}" in " ".join(doc.split())
    assert "temperature: How random the text is." in doc
    assert "max_new_tokens: Most new tokens; -1 goes on to the end of the context. Default: 512." in doc


def test_every_setting_is_an_option_and_a_field_of_batch_lines() -> None:
    names = {parameter.name for parameter in command.params}
    assert names >= SETTINGS.keys()
    assert set(FIELDS) >= SETTINGS.keys()


def test_help_tells_the_defaults() -> None:
    shown = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "[default: the bundle's, otherwise 512]" in shown
    assert "auto, full, alternate, verify, lookup. [default: the bundle's, which is auto]" in shown
    assert "The same seed gives the same text. [default: 0]" in shown


def test_other_names_lead_to_settings_that_there_are() -> None:
    assert {*ALIASES.values(), *FOREIGN.values()} <= SETTINGS.keys()
    assert not {*ALIASES, *FOREIGN} & SETTINGS.keys()
    for name, ours in FOREIGN.items():
        assert hint(name, list(SETTINGS)) == f"did you mean {ours!r}?"


def test_requests_have_the_settings_that_are_served() -> None:
    schema = pytest.importorskip("recycle_onnx.serve.schema")
    served = {name for name, about in SETTINGS.items() if about.served}
    assert served
    for kind in (schema.ChatRequest, schema.CompletionRequest):
        assert served <= kind.model_fields.keys()
        assert not kind.model_fields.keys() & (SETTINGS.keys() - served - {"logprobs"})
        properties = kind.model_json_schema()["properties"]
        for name in served:
            assert properties[name]["description"].startswith(SETTINGS[name].help)
        number, _ = properties["min_p"]["anyOf"]
        assert number == {"type": "number", "minimum": 0, "maximum": 1}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (Number(least=0, notes={0: "greedy"}), "0 (greedy) or more"),
        (Number(least=1), "at least 1"),
        (Number(least=0, most=1, above=True), "more than 0 and at most 1"),
        (Number(least=0, most=1, below=True, notes={0: "always"}), "0 (always) or more, and less than 1"),
        (Number(least=-2, most=2, notes={0: "none"}), "-2 to 2, 0 for none"),
        (Number(whole=True), "a whole number"),
        (Number(least=1, whole=True, besides={-1: "the end"}), "at least 1, or -1 for the end"),
    ],
    ids=str,
)
def test_a_range_is_told_in_words(number: Number, words: str) -> None:
    assert number.expected == words


@pytest.mark.parametrize("value", [True, None, "1", 1j, [], float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"temperature is .*; expected 0 \(greedy\) or more"):
        check("temperature", value)


def test_a_whole_number_may_be_larger_than_any_float() -> None:
    check("seed", 10**400)
