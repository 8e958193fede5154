"""Heads that others publish: what is read from their files, what is decided by their tensors, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.heads import FORMATS, Head, mtp, read_head
from recycle_onnx.conventions import measuring
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.files import read_json, write_json
from tests.helpers import heads, tiny
from tests.helpers.command import assert_refused, names, run

Q = "layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return heads.write_base(tmp_path / "base")


def read(base: Path, head: Path) -> Head:
    with Checkpoint.open(base, base_only=True) as opened:
        return read_head(head, opened.base_weights)


def attached(base: Path, head: Path, out: Path, *options: object) -> Path:
    result = run("attach", base, out, "--head", head, "--no-check", *options)
    assert result.exit_code == 0, result.output
    return out


def test_numbers_of_layers_are_inputs_in_speculators_and_outputs_elsewhere(base: Path, tmp_path: Path) -> None:
    theirs = heads.write_eagle3(tmp_path / "a")
    assert read(base, theirs).config.tap == ("layer.1", "layer.3", "layer.5")
    plain = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 5]}}
    other = heads.write_eagle3(tmp_path / "b")
    write_json(other / "config.json", {**heads.LAYERS, **plain})
    assert read(base, other).config.tap == ("layer.1", "layer.3", "final_pre")
    deep = tiny.write_base(tmp_path / "deep", tiny.tiny_config(num_layers=9))
    for ids in ({}, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}):
        write_json(other / "config.json", {**heads.LAYERS, **ids})
        assert read(deep, other).config.tap == ("layer.2", "layer.4", "layer.6")


def test_what_layers_they_are_follows_from_the_tensors(base: Path, tmp_path: Path) -> None:
    tensors = heads.eagle3_tensors()
    biases = {f"layers.0.self_attn.{part}_proj.bias": np.zeros(len(tensors[Q.replace("q_", f"{part}_")]), np.float32)
              for part in "qkv"}  # fmt: skip
    norms = {f"layers.0.self_attn.{part}_norm.weight": np.ones(8, np.float32) for part in "qk"}
    for name, more, kind in (("a", {}, "llama"), ("b", biases, "qwen2"), ("c", norms, "qwen3")):
        head = heads.write_eagle3(tmp_path / name, {**tensors, **more})
        assert read(base, head).config.layer == kind


def test_a_window_counts_where_the_kind_of_layers_names_it(base: Path, tmp_path: Path) -> None:
    for name, kinds, window in (("a", ["sliding_attention"], 7), ("b", ["full_attention"], None), ("c", None, None)):
        layers = {**heads.LAYERS, "sliding_window": 7, "layer_types": kinds}
        head = heads.write_eagle3(tmp_path / name, transformer_layer_config=layers)
        assert read(base, head).config.window == window


def test_tables_are_the_heads_own_where_they_are_no_copies(base: Path, tmp_path: Path) -> None:
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    tensors = heads.eagle3_tensors(draft=None)
    for name, own, head, expected in (
        ("copies", table.astype(np.float16), table, ("shared", "shared")),
        ("both", table + 0.05, tensors["lm_head.weight"], ("own", "own")),
    ):
        changed = {**tensors, "embed_tokens.weight": own, "lm_head.weight": head}
        config = read(base, heads.write_eagle3(tmp_path / name, changed)).config
        assert (config.embedding, config.lm_head) == expected
    del tensors["lm_head.weight"]
    assert read(base, heads.write_eagle3(tmp_path / "none", tensors)).config.lm_head == "shared"


def test_draft_rows_come_in_the_order_of_their_tokens(base: Path, tmp_path: Path) -> None:
    tensors = heads.eagle3_tensors()
    ids, rows = np.arange(heads.DRAFT) + tensors["d2t"], tensors["lm_head.weight"]
    mixed = np.random.default_rng(1).permutation(heads.DRAFT)
    tensors |= {"d2t": ids[mixed] - np.arange(heads.DRAFT), "lm_head.weight": rows[mixed]}
    head = read(base, heads.write_eagle3(tmp_path / "head", tensors))
    assert head.draft_ids == ids.tolist()
    np.testing.assert_array_equal(head.tensors.float32("lm_head.weight"), rows)


def test_a_head_goes_through_publish_attach_inspect_and_small_weights(base: Path, tmp_path: Path) -> None:
    norms = {f"layers.0.self_attn.{part}_norm.weight": np.full(8, 1.5, np.float32) for part in "qk"}
    head = heads.write_eagle3(tmp_path / "head", {**heads.eagle3_tensors(), **norms})
    checkpoint = attached(base, head, tmp_path / "checkpoint")
    config = read_json(checkpoint / "recycler" / "config.json")
    assert (config["format"], config["layer"]) == ("1.2", "qwen3")
    assert config["read_from"]["format"] == "eagle3"
    assert run("publish", checkpoint, tmp_path / "module", "--no-check").exit_code == 0
    again = run("attach", base, tmp_path / "again", "--module", tmp_path / "module", "--no-check")
    assert again.exit_code == 0, again.output
    shown = run("inspect", tmp_path / "again").output
    for word in ("fusion", "attention", "eagle3"):
        assert word in shown
    for bits in (8, 4):
        export(tmp_path / "again", tmp_path / f"int{bits}", ExportOptions(quantization=Quantization(bits)))
        model = recycle_onnx.load(tmp_path / f"int{bits}", threads=1)
        full = model.generate([5, 6, 7], strategy="full", max_new_tokens=12).tokens
        assert model.generate([5, 6, 7], strategy="verify", max_new_tokens=12).tokens == full


@pytest.mark.parametrize("form", [form for form in FORMATS if form.inside], ids=lambda form: form.name)
def test_a_layer_inside_a_checkpoint_is_attached_in_place(form: Any, base: Path, tmp_path: Path) -> None:
    heads.add_mtp_layer(base, form)
    before = (base / "model.safetensors").read_bytes()
    attached(base, base, base)
    assert (base / "model.safetensors").read_bytes() == before
    with Checkpoint.open(base) as opened:
        assert opened.recycler is not None
        assert opened.recycler.read_from == {"format": form.name, "reference": form.source}


@pytest.mark.parametrize("form", [mtp.MIMO, mtp.ERNIE, mtp.DEEPSEEK], ids=lambda form: form.name)
def test_layers_that_are_left_out_are_told_of(form: Any, base: Path, tmp_path: Path) -> None:
    heads.add_mtp_layer(base, form)
    number = heads.DEPTH if form is mtp.DEEPSEEK else 0
    tensors = load_file(base / "model.safetensors")
    first = {pattern.format(layers=heads.DEPTH) for pattern in form.tensors}
    own = {name: tensor for name, tensor in tensors.items() if any(name.startswith(each) for each in first)}
    second = {name.replace(f".{number}.", f".{number + 1}.", 1): tensor for name, tensor in own.items()}
    save_file(tensors | second, base / "model.safetensors", metadata={"format": "pt"})
    result = run("attach", base, tmp_path / "out", "--head", base, "--no-check")
    assert result.exit_code == 0, result.output
    assert "2 such layers; the first one" in result.output
    assert read_json(tmp_path / "out" / "recycler" / "config.json")["read_from"]["layers"] == 2


def test_what_was_measured_is_recorded_and_repeated(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "TOKENS", 62)
    head = heads.write_eagle3(tmp_path / "head")
    result = run("attach", base, tmp_path / "checkpoint", "--head", head, "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)["recycler"]["read_from"]
    assert about["declared"] == about["taken"]
    [measured] = about["measured"]
    assert {reading["convention"] for reading in measured["readings"]} == {
        "concat", "tap", "residual", "recycle", "position",
    }  # fmt: skip
    assert names(tmp_path) == ["base", "checkpoint", "head"]
    again = run("conventions", tmp_path / "checkpoint", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["acceptance"] == measured["acceptance"]
    assert "as good as nothing" in run("attach", base, tmp_path / "more", "--head", head).stdout
    shown = run("conventions", tmp_path / "checkpoint", "--tokens", 64).stdout
    assert "of 62 proposals right as declared" in shown
    assert "concat as hidden_state + embedding" in shown


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change a head's tensors."""

    def edit(head: Path) -> None:
        tensors = load_file(head / "model.safetensors")
        change(tensors)
        save_file(tensors, head / "model.safetensors")

    return edit


def reconfigured(**changes: Any) -> Callable[[Path], object]:
    """Change a head's config."""
    return lambda head: write_json(head / "config.json", {**read_json(head / "config.json"), **changes})


def pickled(head: Path) -> None:
    (head / "model.safetensors").rename(head / "pytorch_model.bin")


def renamed(**stored: str) -> Callable[[Path], object]:
    """Let the files have nothing but one tensor of each name."""
    return lambda head: save_file(
        {name: np.ones((2, 2), np.float32) for name in stored.values()}, head / "model.safetensors"
    )


def resized(name: str, *shape: int) -> Callable[[Path], object]:
    return rewritten(lambda tensors: tensors.update({name: np.ones(shape, np.float32)}))


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "for another base": (
        reconfigured(transformer_layer_config={**heads.LAYERS, "hidden_size": 64}),
        ("head", "another base", "hidden_size 64 against 32"),
    ),
    "for another vocabulary": (
        reconfigured(transformer_layer_config={**heads.LAYERS, "vocab_size": 301}),
        ("another base", "vocab_size 301 against 300"),
    ),
    "of another shape": (resized("fc.weight", 32, 64), ("fc.weight", "[32, 64]", "[32, 96]")),
    "without d2t": (rewritten(lambda tensors: tensors.pop("d2t")), ("64 rows", "300 tokens", "d2t")),
    "d2t out of range": (
        rewritten(lambda tensors: tensors.update(d2t=tensors["d2t"] + 200)), ("d2t lists 64 tokens", "below 300"),
    ),
    "d2t and t2d apart": (
        rewritten(lambda tensors: tensors.update(t2d=~tensors["t2d"])), ("t2d and d2t name different tokens",),
    ),
    "d2t of floats": (
        rewritten(lambda tensors: tensors.update(d2t=tensors["d2t"].astype(np.float32))), ("d2t", "whole numbers"),
    ),
    "taps that the base lacks": (
        reconfigured(eagle_aux_hidden_state_layer_ids=[2, 9, 20]), ("'layer.9'", "'layer.1' to 'layer.5'"),
    ),
    "taps that are no numbers": (
        reconfigured(eagle_aux_hidden_state_layer_ids="all"), ("eagle_aux_hidden_state_layer_ids", "'all'"),
    ),
    "a pickle": (pickled, ("pytorch_model.bin", "pickle", "weights_only=True", "save_file")),
    "no weights": (lambda head: (head / "model.safetensors").unlink(), ("no weights", "model.safetensors")),
    "no config": (lambda head: (head / "config.json").unlink(), ("no config.json",)),
    "a missing tensor": (rewritten(lambda tensors: tensors.pop("norm.weight")), ("'norm.weight'", "missing")),
    "a norm that only the config has": (reconfigured(norm_before_fc=True), ("fusion_norm.weight", "missing")),
    "an unknown tensor": (resized("gate.weight", 2, 2), ("'gate.weight'", "not known", "eagle3")),
    "an unknown flag": (reconfigured(norm_output="yes"), ("norm_output", "'yes'", "true or false")),
    "a head of another width": (reconfigured(target_hidden_size=64), ("target_hidden_size 64", "32")),
    "of numbers that are not finite": (
        rewritten(lambda tensors: tensors["fc.weight"].fill(np.nan)), ("fc.weight", "not finite"),
    ),
    "in eight bits": (
        rewritten(lambda tensors: tensors.update({"fc.weight": np.ones((32, 96), np.int8)})), ("fc.weight", "I8"),
    ),
    "quantized": (
        rewritten(lambda tensors: tensors.update({"fc.weight_packed": np.ones((2, 2), np.int32)})),
        ("fc.weight_packed", "quantized"),
    ),
    "windows in some layers": (
        reconfigured(transformer_layer_config={
            **heads.LAYERS, "sliding_window": None, "layer_types": ["sliding_attention"]}),
        ("layer_types", "sliding_window None"),
    ),
    "Medusa for another base": (
        renamed(a="0.0.linear.weight", b="0.1.weight"), ("0.0.linear.weight", "[2, 2]", "[32, 32]"),
    ),
    "Medusa without an LM head": (
        lambda head: (heads.write_medusa(head / "x"), rewritten(lambda tensors: (
            tensors.clear(), tensors.update(load_file(head / "x" / "model.safetensors")), tensors.pop("1.2.weight"),
        ))(head)), ("places.1.lm_head.weight", "missing", "[300, 32]"),
    ),
    "Medusa with a token map": (
        renamed(a="blocks.0.layers.0.weight", b="token_map"), ("'token_map'", "not known", "medusa, vLLM"),
    ),
    "of Qwen3-Next": (renamed(a="mtp.fc.weight"), ("Qwen3-Next", "output gate")),
    "an assistant of Gemma 4": (renamed(a="pre_projection.weight"), ("Gemma 4", "keys and values")),
    "another kind of speculators": (
        lambda head: (renamed(a="some.weight")(head), reconfigured(speculators_model_type="dflash")(head)),
        ("'dflash'", "eagle3"),
    ),
    "no head at all": (renamed(a="model.layers.0.mlp.up_proj.weight"), ("not a head", "eagle3", "mimo")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(kind: str, base: Path, tmp_path: Path) -> None:
    head = heads.write_eagle3(tmp_path / "head")
    damage, words = BAD[kind]
    damage(head)
    assert_refused(run("attach", base, tmp_path / "out", "--head", head), 2, *words)
    assert names(tmp_path) == ["base", "head"]


def test_experts_in_a_layer_inside_are_refused(base: Path, tmp_path: Path) -> None:
    heads.add_mtp_layer(base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.6.mlp.experts.0.up_proj.weight"] = np.ones((2, 2), np.float32)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert_refused(run("attach", base, tmp_path / "out", "--head", base), 2, "mixture of experts")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--head", "HEAD", "--module", "HEAD"), ("--module and --head",)),
        (("--accept-measured",), ("--accept-measured", "--head FOLDER")),
        (("--head", "HEAD", "--layers", 2), ("--layers", "has decided it")),
        (("--head", "HEAD", "--module-revision", "main"), ("--module-revision", "is a path")),
        (("--head", "nowhere"), ("nowhere", "no such folder")),
        (("--head", "HEAD/config.json"), ("config.json", "is a file")),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: tuple[object, ...], words: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    head = heads.write_eagle3(tmp_path / "head")
    arguments = [str(option).replace("HEAD", str(head)) for option in options]
    assert_refused(run("attach", base, tmp_path / "out", *arguments), 2, *words)
    assert names(tmp_path) == ["base", "head"]


def test_a_checkpoint_without_a_module_has_no_conventions(base: Path) -> None:
    assert_refused(run("conventions", base), 2, "no recyclable module")
    heads.add_mtp_layer(base, mtp.MIMO)
    attached(base, base, base)
    assert_refused(run("conventions", base, "--tokens", 0), 2, "--tokens is 0")
    assert_refused(run("attach", base, base, "--head", base), 2, "exists")
