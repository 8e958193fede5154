"""Families are data: small files, and no name of one in what computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.checkpoint.families import FAMILIES, MODULES, describe
from recycle_onnx.errors import InputError
from tests.helpers import tiny

PACKAGE = Path(recycle_onnx.__file__).parent
LONGEST = 80
OTHER_NAMES = ("pythia", "smollm", "qwen", "gemma", "phi", "olmo", "gpt-2", "gpt-neox")
NAMES = re.compile(rf"\b({'|'.join(map(re.escape, [*FAMILIES, *OTHER_NAMES]))})\d*\b(?!\.cpp)", re.IGNORECASE)


def names_in(text: str) -> list[str]:
    return [found.group() for found in NAMES.finditer(text)]


@pytest.mark.parametrize("part", ["export", "runtime", "training", "evaluation"])
def test_what_computes_names_no_family(part: str) -> None:
    for path in sorted((PACKAGE / part).rglob("*.py")):
        assert not names_in(path.read_text()), path


def test_the_search_would_find_one() -> None:
    assert names_in('if base.model_type == "gemma3_text" or kind in ("opt", "Qwen3"):') == [
        "gemma3_text",
        "opt",
        "Qwen3",
    ]
    assert not names_in("options, adopted")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_family_is_a_small_file(module: object) -> None:
    source = Path(str(module.__file__))  # type: ignore[attr-defined]
    assert len(source.read_text().splitlines()) <= LONGEST


def test_every_family_is_in_the_list_of_models() -> None:
    text = (PACKAGE.parent / "docs" / "models.md").read_text(encoding="utf-8")
    for kind in FAMILIES:
        assert f"`{kind}`" in text, kind


def test_a_made_config_reads_as_what_it_was_made_of() -> None:
    base = tiny.tiny_config(num_layers=3, head_dim=24)
    assert describe(base.to_hugging_face(), Path("config.json"))[0] == base
    assert (base.num_layers, base.head_dim, base.placement) == (3, 24, "pre")


def test_the_last_layers_are_a_base_of_their_own() -> None:
    base = tiny.tiny_config(num_layers=3)
    assert base.last(2).num_layers == 2
    assert base.last(3) == base


def test_an_unknown_family_gets_a_line_that_helps() -> None:
    with pytest.raises(InputError) as caught:
        describe({"model_type": "perceiver"}, Path("config.json"))
    for word in ("'perceiver'", "gpt_neox", "docs/adding-a-family.md"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
