"""Medusa heads, which propose for all places of a chain in one run, through everything that a module goes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.bench.steps import predicted_speedup
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.heads import read_head
from recycle_onnx.conventions import measuring
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.decoding.auto import first_choice
from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from tests.helpers import heads
from tests.helpers.command import assert_refused, run

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return heads.write_base(tmp_path / "base")


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    head = heads.write_medusa(tmp_path / "head")
    result = run("attach", base, tmp_path / "checkpoint", "--head", head, "--no-check")
    assert result.exit_code == 0, result.output
    return tmp_path / "checkpoint"


def exported(checkpoint: Path, bundle: Path, *options: object) -> recycle_onnx.Model:
    result = run("export", checkpoint, bundle, "--no-compare", *options)
    assert result.exit_code == 0, result.output
    return recycle_onnx.load(bundle, threads=1)


def test_its_config_says_what_it_is(checkpoint: Path, tmp_path: Path) -> None:
    config = read_json(checkpoint / "recycler" / "config.json")
    expected = {"format": "1.2", "num_layers": 0, "join": None, "places": 3, "blocks": 2, "lm_head": "own"}
    assert {name: config[name] for name in expected} == expected
    assert "3 places" in run("inspect", checkpoint).output
    assert run("publish", checkpoint, tmp_path / "module", "--no-check").exit_code == 0
    assert "3 places that read the base's hidden state" in (tmp_path / "module" / "README.md").read_text()
    again = run("attach", base_of(checkpoint), tmp_path / "again", "--module", tmp_path / "module", "--no-check")
    assert again.exit_code == 0, again.output


def base_of(checkpoint: Path) -> Path:
    return checkpoint.parent / "base"


@pytest.mark.parametrize(
    "options",
    [
        (), ("--precision", "int8"), ("--precision", "int4"), ("--flavour", "standard"),
        ("--precision", "int8", "--kv", "int8"),
    ],
    ids=lambda options: " ".join(options) or "float32",
)  # fmt: skip
def test_every_bundle_says_what_its_full_model_says(options: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    model = exported(checkpoint, tmp_path / "bundle", *options)
    text = model.generate(PROMPT, strategy="full", max_new_tokens=24).tokens
    for strategy, chain in (("verify", 1), ("verify", 3), ("verify", 15), ("auto", None)):
        found = model.generate(PROMPT, strategy=strategy, chain=chain, max_new_tokens=24)
        assert found.tokens == text
    assert len(model.generate(PROMPT, strategy="alternate", max_new_tokens=24).tokens) == 24


def test_one_run_proposes_for_all_places_and_no_more(checkpoint: Path, tmp_path: Path) -> None:
    model = exported(checkpoint, tmp_path / "bundle")
    for chain in (1, 2, 3, 15):
        decoder = model.decoder("verify")
        stats = model.generate(PROMPT, strategy="verify", chain=chain, max_new_tokens=24).stats
        assert decoder.longest_chain == 3
        assert stats.proposed <= min(chain, 3) * stats.recycle_runs
        assert stats.proposed > (min(chain, 3) - 1) * stats.recycle_runs


def test_a_chain_costs_one_run(checkpoint: Path, tmp_path: Path) -> None:
    exported(checkpoint, tmp_path / "bundle")
    bench = run("bench", tmp_path / "bundle", "--context", 16, "--new-tokens", 8, "--chain", 3, "--threads", 1)
    assert bench.exit_code == 0, bench.output
    measured = run("calibrate", tmp_path / "bundle", "--context", 16, "--new-tokens", 8, "--json")
    assert measured.exit_code == 0, measured.output
    steps = {"full_1": 8.0, "full_2": 8.0, "full_3": 8.0, "full_4": 8.0, "recycle_1": 7.0, "recycle_2": 7.0}
    calibration = MachineCalibration.of_this_machine(steps, {"module": [0.9, 0.9, 0.9]})
    assert first_choice(calibration, 3) == ("module", 3, pytest.approx(3.439 * 8 / 15))
    assert first_choice(calibration) == ("nothing", 0, 1.0)  # 1.9 tokens in 15 ms are no gain worth having
    assert predicted_speedup("verify", steps, 3, 0.9, 3.439, one_run=True) == pytest.approx(3.439 * 8 / 15)
    assert predicted_speedup("verify", steps, 3, 0.9, 3.439) == pytest.approx(3.439 * 8 / 29)


def test_its_conventions_are_taps_and_the_token_of_the_first_place(
    base: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "TOKENS", 62)
    found = json.loads(run("conventions", checkpoint, "--json").stdout)
    readings = {(each["convention"], each["value"]) for each in found["readings"]}
    assert readings == {
        ("tap", "final_pre"), ("tap", "layer.5"), ("position", "the first place's token is p+1"),
        ("position", "the first place's token is p+3"),
    }  # fmt: skip


def test_what_does_not_go_with_it_is_refused(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "recycler" / "config.json"
    config = read_json(path)
    for name, value in (("num_layers", 1), ("final_norm", True), ("window", 4), ("places", 0), ("places", 17)):
        write_json(path, {**config, name: value})
        assert_refused(run("inspect", checkpoint), 2, name)
    write_json(path, {**config, "tap": ["layer.1", "layer.2"]})
    assert_refused(run("inspect", checkpoint), 2, "2 taps", "expected one")
    write_json(path, {**config, "join": "projection"})
    assert_refused(run("inspect", checkpoint), 2, "places is 3", "expected 1")


def test_a_bundle_with_places_is_none_for_genai(checkpoint: Path, tmp_path: Path) -> None:
    exported(checkpoint, tmp_path / "bundle")
    assert_refused(run("mtp", tmp_path / "bundle", tmp_path / "genai"), 2, "3 places")
    manifest = read_json(tmp_path / "bundle" / "recycle.json")
    assert manifest["graphs"]["recycler"]["places"] == 3
    assert "places" not in manifest["graphs"]["full"]
    manifest["graphs"]["recycler"]["num_layers"] = 1
    write_json(tmp_path / "bundle" / "recycle.json", manifest)
    assert_refused(run("inspect", tmp_path / "bundle"), 2, "graphs.recycler.places is 3 with layers")


def test_copies_of_the_bases_head_are_shared(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    head = heads.write_medusa(tmp_path / "head")
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    tensors = load_file(head / "model.safetensors")
    copies = {name: table.copy() for name in tensors if tensors[name].shape == table.shape}
    assert len(copies) == 3
    save_file(tensors | copies, head / "model.safetensors")
    with Checkpoint.open(base, base_only=True) as opened:
        assert read_head(head, opened.base_weights).config.lm_head == "shared"
        copies.popitem()
        save_file(tensors | copies, head / "model.safetensors")
        assert read_head(head, opened.base_weights).config.lm_head == "own"


def test_an_lm_head_stands_behind_the_last_block_once(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    head = heads.write_medusa(tmp_path / "head")
    tensors = load_file(head / "model.safetensors")
    assert {"0.0.linear.weight", "0.1.linear.weight", "0.2.weight"} <= tensors.keys()
    save_file({**tensors, "0.7.weight": tensors["0.2.weight"]}, head / "model.safetensors")
    twice = run("attach", base, tmp_path / "twice", "--head", head, "--no-check")
    assert_refused(twice, 2, "'0.2.weight' and '0.7.weight'", "expected one of them")
    blocks = {
        f"{place}.{number}.linear.weight": tensors[f"{place}.0.linear.weight"]
        for place in (0, 1, 2)
        for number in range(8)
    }
    save_file(
        {**blocks, **{f"{place}.8.weight": tensors[f"{place}.2.weight"] for place in (0, 1, 2)}},
        head / "model.safetensors",
    )
    assert run("attach", base, tmp_path / "eight", "--head", head, "--no-check").exit_code == 0
    assert read_json(tmp_path / "eight" / "recycler" / "config.json")["blocks"] == 8


def test_inspect_shows_what_a_module_without_layers_has(checkpoint: Path) -> None:
    shown = run("inspect", checkpoint).output
    assert "blocks 2" in shown
    assert "concat" not in shown
    assert "recycle p" not in shown
