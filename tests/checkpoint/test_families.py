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


def test_the_page_about_families_shows_a_whole_one() -> None:
    page = (PACKAGE.parent / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code == (PACKAGE / "checkpoint" / "families" / "ernie4_5.py").read_text(encoding="utf-8")


LLAMA = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-5,
}  # fmt: skip
"""The fields that every config of a Llama's kind has."""


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("stablelm", "qk_layernorm", True),
        ("stablelm", "use_parallel_residual", True),
        ("hunyuan_v1_dense", "use_cla", True),
        ("hunyuan_v1_dense", "use_qk_norm", False),
        ("llama", "rope_scaling", {"type": "yarn", "factor": 2.0, "alpha": 50.0}),
        ("exaone4", "layer_types", ["chunked_attention"] * 2),
    ],
)
def test_what_the_description_cannot_say_is_refused_by_name(kind: str, field: str, value: object) -> None:
    usual = {**LLAMA, "model_type": kind, "sliding_window": 8 if kind == "exaone4" else None}
    describe(usual, Path("config.json"))
    with pytest.raises(InputError) as caught:
        describe({**usual, field: value}, Path("config.json"))
    assert "config.json" in str(caught.value)
    assert {"rope_scaling": "alpha"}.get(field, field) in str(caught.value)


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
