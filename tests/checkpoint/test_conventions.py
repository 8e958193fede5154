"""Conventions of a module as choices: through the command line, in the checkpoint, the graphs and the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import recycle_onnx
from recycle_onnx.bundle import Manifest
from recycle_onnx.checkpoint import Checkpoint, DraftVocabulary, NewModule, attach
from recycle_onnx.checkpoint.recycler import EMBEDDING_FIRST
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, export
from recycle_onnx.files import read_json, write_json
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

PROMPT = "the cat sat on"
TAPS = ("layer.1", "final_post")
HIDDEN = tiny.tiny_config().hidden_size


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base", tiny.tiny_config())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    return tmp_path / "text.txt"


def module(checkpoint: Path) -> dict[str, np.ndarray]:
    return load_file(checkpoint / "recycler" / "model.safetensors")


def test_the_same_weights_stand_in_the_columns_of_the_same_input(base: Path, tmp_path: Path) -> None:
    attach(base, tmp_path / "ours", NewModule(tap=TAPS))
    attach(base, tmp_path / "theirs", NewModule(tap=TAPS, concat=EMBEDDING_FIRST[::-1]))
    ours, theirs = (module(tmp_path / name)["projection.weight"] for name in ("ours", "theirs"))
    assert ours.shape == (HIDDEN, 3 * HIDDEN)
    np.testing.assert_array_equal(np.roll(ours, -HIDDEN, axis=1), theirs)
    assert not np.array_equal(ours, theirs)


def test_a_module_may_start_from_nothing(base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        attach(base, tmp_path / name, NewModule(init="random", seed=seed))
    a, b, c = (module(tmp_path / name) for name in "abc")
    theirs = load_file(base / "model.safetensors")
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
        if value.ndim == 2:
            assert not np.array_equal(value, c[name])
            assert value.std() == pytest.approx(value.shape[1] ** -0.5, rel=0.1)
        else:
            np.testing.assert_array_equal(value, 1)
    assert not np.allclose(a["layers.0.mlp.up_proj.weight"], theirs["model.layers.1.mlp.up_proj.weight"], atol=0.1)


def test_a_config_with_the_tap_as_a_word_or_without_later_fields_means_the_same(base: Path, tmp_path: Path) -> None:
    attach(base, tmp_path / "c")
    path = tmp_path / "c" / "recycler" / "config.json"
    with Checkpoint.open(tmp_path / "c") as source:
        expected = source.recycler
    content = read_json(path)
    write_json(path, {**content, "tap": "final_post"})
    with Checkpoint.open(tmp_path / "c") as source:
        assert source.recycler == expected
    write_json(path, {name: content[name] for name in ("num_layers", "base", "format")})
    with Checkpoint.open(tmp_path / "c") as source:
        assert source.recycler == expected


def test_the_default_has_no_further_output(tiny_bundle: Path) -> None:
    full, recycler = (Manifest.read(tiny_bundle / "recycle.json").graphs[kind] for kind in ("full", "recycler"))
    assert [name for name in full.outputs() if "present" not in name] == ["logits", "hidden_states"]
    assert "hidden_states" in recycler.inputs()
    decoder = recycle_onnx.load(tiny_bundle).decoder("verify")
    assert decoder.recycler is not None
    decoder.prefill([1, 2, 3])
    decoder.full_step([4], keep=1)
    [call] = decoder.full._calls.values()
    assert call._taps == []


def test_a_bundle_from_before_taps_means_the_final_norm(tiny_bundle: Path) -> None:
    path = tiny_bundle / "recycle.json"
    content = json.loads(path.read_text())
    for spec in content["graphs"].values():
        del spec["taps"]
    old = tiny_bundle.parent / "old.json"
    old.write_text(json.dumps(content))
    assert Manifest.read(old).graphs == Manifest.read(path).graphs


@pytest.mark.parametrize(
    ("taps", "inputs"),
    [(("final_pre",), "recycle_states"), (TAPS, "recycle_states"), (("final_post",), "hidden_states")],
)
def test_the_graphs_follow_the_contract(taps: tuple[str, ...], inputs: str, base: Path, tmp_path: Path) -> None:
    attach(base, tmp_path / "c", NewModule(tap=taps))
    export(tmp_path / "c", tmp_path / "b")
    specs = Manifest.read(tmp_path / "b" / "recycle.json").graphs
    assert specs["recycler"].inputs()[inputs].shape[-1] == len(taps) * HIDDEN
    assert specs["recycler"].outputs()["hidden_states_out"].shape[-1] == len(taps) * HIDDEN
    states = [name for name in specs["full"].outputs() if name.startswith("hidden_states")]
    assert states == ["hidden_states", *(f"hidden_states.{tap}" for tap in taps if tap != "final_post")]
    recycle_onnx.load(tmp_path / "b")  # compares names with the contract


@pytest.mark.parametrize("how", [None, HalfPrecision(), Quantization(bits=8, block_size=16)], ids=str)
def test_every_strategy_works_with_several_taps(
    how: Quantization | HalfPrecision | None, base: Path, tmp_path: Path
) -> None:
    attach(base, tmp_path / "c", NewModule(tap=TAPS, recycle="pre_norm"))
    export(tmp_path / "c", tmp_path / "b", ExportOptions(quantization=how))
    model = recycle_onnx.load(tmp_path / "b")
    expected = model.generate(PROMPT, strategy="full", max_new_tokens=30).tokens
    for options in (
        {"strategy": "auto"},
        {"strategy": "verify"},
        {"strategy": "verify", "chain": 3},
        {"strategy": "lookup"},
    ):
        result = model.generate(PROMPT, max_new_tokens=30, **options)
        if how is None:
            assert result.tokens == expected
    assert len(model.generate(PROMPT, strategy="alternate", max_new_tokens=30).tokens) == len(expected)


def test_postponed_states_are_those_that_a_prefill_gives(base: Path, tmp_path: Path) -> None:
    attach(base, tmp_path / "c", NewModule(tap=TAPS))
    export(tmp_path / "c", tmp_path / "b")
    model = recycle_onnx.load(tmp_path / "b")
    decoder = model.decoder("verify")
    decoder.prefill([5, 6, 7])
    decoder.start_recycling(8)
    for token in (8, 9, 10):
        decoder.full_step([token], keep=1)
        decoder.postpone([token + 1])
    decoder.full_step([11], keep=1)
    found = decoder.recycle_step([12]).copy()
    whole = model.decoder("verify")
    whole.prefill([5, 6, 7, 8, 9, 10, 11])
    np.testing.assert_allclose(found, whole.start_recycling(12), atol=1e-4)


def test_inspect_shows_every_convention(base: Path, text: Path, tmp_path: Path) -> None:
    options = ("--tap", "layer.1, final_post", "--concat", "hidden_state,embedding", "--recycle", "pre_norm")
    draft = ("--draft-vocab", 64, "--draft-text", text)
    assert run("attach", base, tmp_path / "c", *options, *draft, "--init", "random").exit_code == 0
    assert run("export", tmp_path / "c", tmp_path / "b").exit_code == 0
    for folder in (tmp_path / "c", tmp_path / "b"):
        found = json.loads(run("inspect", folder, "--json").stdout)["recycler"]
        assert (found["tap"], found["concat"], found["recycle"], found["draft_vocabulary"]["size"]) == (
            ["layer.1", "final_post"], ["hidden_state", "embedding"], "pre_norm", 64,
        )  # fmt: skip
        shown = " ".join(run("inspect", folder).stdout.replace("│", " ").split())
        for words in ("layer.1 + final_post", "hidden_state + embedding", "recycle pre_norm", "size 64"):
            assert words in shown


def test_the_draft_vocabulary_belongs_to_the_checkpoint_and_an_export_may_choose_another(
    base: Path, text: Path, tmp_path: Path
) -> None:
    attach(base, tmp_path / "c", NewModule(draft_vocabulary=DraftVocabulary(64, text)))
    with Checkpoint.open(tmp_path / "c") as source:
        own = source.draft_ids
    assert own == DraftVocabulary(64, text).choose(base, 300)
    export(tmp_path / "c", tmp_path / "own")
    export(tmp_path / "c", tmp_path / "other", ExportOptions(draft_vocabulary=DraftVocabulary(32, text)))
    for name, expected in (("own", own), ("other", DraftVocabulary(32, text).choose(base, 300))):
        manifest = Manifest.read(tmp_path / name / "recycle.json")
        assert manifest.draft_vocabulary == expected
        assert manifest.graphs["recycler"].vocab_size == len(expected)
        model = recycle_onnx.load(tmp_path / name)
        recycled = model.generate(PROMPT, strategy="alternate", max_new_tokens=20)
        assert {t for t, own in zip(recycled.tokens, recycled.recycled, strict=True) if own} <= set(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tap", "layer.99"), ("--tap", "'layer.99'", "'layer.1' to 'layer.1'")),
        (("--tap", "layer.0"), ("'layer.0'",)),
        (("--tap", "layer.01"), ("'layer.01'",)),
        (("--tap", "layer.2"), ("'layer.2'", "'final_pre'")),
        (("--tap", "middle"), ("'middle'",)),
        (("--tap", ""), ("''",)),
        (("--tap", "final_pre,final_pre"), ("'final_pre' twice",)),
        (("--concat", "foo"), ("--concat", "'foo'", "hidden_state,embedding")),
        (("--recycle", "foo"), ("--recycle", "'foo'", "pre_norm")),
        (("--init", "zero"), ("--init", "'zero'", "random")),
        (("--seed", "-1"), ("--seed", "-1")),
        (("--draft-vocab", 64), ("--draft-text",)),
        (("--draft-text", "TEXT"), ("--draft-vocab",)),
        (("--draft-vocab", 8, "--draft-text", "TEXT"), ("draft-vocab is 8", "16 to 300")),
        (("--draft-vocab", 301, "--draft-text", "TEXT"), ("draft-vocab is 301", "16 to 300")),
        (("--draft-vocab", 64, "--draft-text", "nowhere.txt"), ("nowhere.txt", "no such text file")),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[object, ...], words: tuple[str, ...], base: Path, text: Path, tmp_path: Path
) -> None:
    arguments = [text if option == "TEXT" else option for option in options]
    assert_refused(run("attach", base, tmp_path / "out", *arguments), 2, *words)
    assert names(tmp_path) == ["base", "text.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tap": ["layer.1", 3]}, ("tap '3'", "'final_post'")),
        ({"tap": []}, ("no tap",)),
        ({"tap": "layer.1"}, ("hidden_norm.weight", "missing")),
        ({"concat": ["hidden_state"]}, ("concat", "('embedding', 'hidden_state')")),
        ({"recycle": "fused"}, ("recycle 'fused'", "'post_norm' or 'pre_norm'")),
        ({"draft_vocabulary": 64}, ("draft_vocabulary 64", "a size and a file")),
        ({"draft_vocabulary": {"size": 64, "file": "../text"}}, ("draft_vocabulary", "a size and a file")),
        ({"draft_vocabulary": {"size": 63, "file": "draft_vocabulary.json"}}, ("expected 63", "token_ids")),
        ({"draft_vocabulary": {"size": 64, "file": "lost.json"}}, ("lost.json", "no such file")),
    ],
    ids=str,
)
def test_a_module_with_other_conventions_than_it_says_is_refused(
    changes: dict[str, object], words: tuple[str, ...], base: Path, text: Path, tmp_path: Path
) -> None:
    attach(base, tmp_path / "c", NewModule(tap=TAPS, draft_vocabulary=DraftVocabulary(64, text)))
    path = tmp_path / "c" / "recycler" / "config.json"
    write_json(path, {**read_json(path), **changes})
    assert_refused(run("export", tmp_path / "c", tmp_path / "b"), 2, *words)
