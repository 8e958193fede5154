"""Bases that others quantized: what is read is what was stored, and it reaches the kernels bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.export.block_quantizer import unpack
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run
from tests.helpers.quantized import Tensors, Way, write_quantized

CONFIG = tiny.tiny_config(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16)
DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
CT = "compressed-tensors"
WAYS = [
    Way("gptq"), Way("gptq", symmetric=True), Way("gptq", version=2), Way("gptq", bits=8, group=-1),
    Way("gptq", group=-1, symmetric=True), Way("gptq", group=64), Way("gptq", scales="float32"),
    Way("awq"), Way("awq", group=16), Way("awq", group=-1),
    Way(CT), Way(CT, symmetric=True, scales="bfloat16"), Way(CT, bits=8, group=-1, symmetric=True),
    Way(CT, bits=8, scales="float32"), Way(CT, group=-1), Way(CT, group=16, symmetric=True),
]  # fmt: skip
"""(Rows of 96 values have a group and a half of 64.)"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "base", CONFIG)


def exported(base: Path, out: Path, *options: object) -> Path:
    result = run("export", base, out, "--threads", 1, *options)
    assert result.exit_code == 0, result.output
    return out


def logits(bundle: Path) -> np.ndarray:
    return recycle_onnx.load(bundle, threads=1).decoder("full").full_step(list(range(20, 36)), keep=16).copy()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_values_are_scales_times_integers_to_the_bit(way: Way, base: Path, tmp_path: Path) -> None:
    folder, made = write_quantized(tmp_path / "quantized", base, way)
    with Checkpoint.open(folder) as checkpoint:
        weights = checkpoint.base_weights
        assert len(made) == 14
        for name, grouped in made.items():
            np.testing.assert_array_equal(weights.float32(name), grouped.values())
            np.testing.assert_array_equal(weights.float32(name, slice(5, 19)), grouped.values()[5:19])
            assert weights.integer_type(name) is not None
        assert weights.integer_type("model.embed_tokens.weight") is None


@pytest.mark.parametrize(
    ("way", "size"),
    [(Way("gptq", group=64), 32), (Way("awq", group=64), 32), (Way(CT, bits=8, group=128), 64)],
    ids=str,
)
def test_large_groups_become_blocks_in_which_all_runs_round_alike(way: Way, size: int, tmp_path: Path) -> None:
    config = tiny.tiny_config(hidden_size=128, intermediate_size=256, num_heads=4, num_kv_heads=2, head_dim=32)
    folder, made = write_quantized(tmp_path / "quantized", tiny.write_base(tmp_path / "base", config), way)
    with Checkpoint.open(folder) as checkpoint:
        read = checkpoint.base_weights.integers(f"{DOWN}.weight")
        assert read.block_size == size
        np.testing.assert_array_equal(read.values(), made[f"{DOWN}.weight"].values())
    bundle = exported(folder, tmp_path / "bundle", "--precision", f"int{way.bits}", "--no-compare")
    full = recycle_onnx.load(bundle, threads=1).decoder("full")
    whole = full.full_step(list(range(20, 36)), keep=16).copy()
    full.keep(0)
    steps = [full.full_step([token], keep=1).copy() for token in range(20, 36)]
    np.testing.assert_array_equal(whole, np.concatenate(steps))


@pytest.mark.parametrize("flavour", ["ort", "standard"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_bundle_has_the_codes_scales_and_zero_points_bit_by_bit(
    way: Way, flavour: str, base: Path, tmp_path: Path
) -> None:
    folder, made = write_quantized(tmp_path / "quantized", base, way)
    bundle = exported(
        folder, tmp_path / "bundle", "--precision", f"int{way.bits}", "--flavour", flavour, "--no-compare"
    )
    tensors = {name: v.const_value for name, v in ir.load(bundle / "model.onnx").graph.initializers.items()}
    for name, grouped in ((name, grouped) for name, grouped in made.items() if "down_proj" in name or "o_proj" in name):
        codes, scales, zeros = (
            None if tensors.get(f"{name}.{part}") is None else tensors[f"{name}.{part}"].numpy()
            for part in (f"q{way.bits}", "scales", "zero_points")
        )
        rows, width = grouped.codes.shape
        if flavour == "ort":
            blocks = scales.reshape(rows, -1)
            codes = unpack(codes.reshape(rows, -1), way.bits)
            zeros = None if zeros is None else unpack(zeros.reshape(rows, -1), way.bits)[:, : blocks.shape[1]]
        else:
            shift = 0 if zeros is not None else 1 << (way.bits - 1)
            blocks, codes = scales.T, codes.astype(np.int64).T + shift
            zeros = None if zeros is None else zeros.T
        index = np.arange(blocks.shape[1]) * (width // blocks.shape[1]) // grouped.group
        np.testing.assert_array_equal(codes, grouped.codes)
        np.testing.assert_array_equal(blocks, grouped.scales.astype(np.float32)[:, index])
        assert (zeros is None) == way.symmetric
        if zeros is not None:
            np.testing.assert_array_equal(zeros, grouped.zeros[:, index])


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[7], WAYS[10], WAYS[12]], ids=str)
def test_logits_are_those_of_the_values_in_float(way: Way, base: Path, tmp_path: Path) -> None:
    folder, made = write_quantized(tmp_path / "quantized", base, way)
    plain = tiny.write_base(tmp_path / "plain", CONFIG)
    tensors = load_file(plain / "model.safetensors")
    save_file({**tensors, **{name: g.values() for name, g in made.items()}}, plain / "model.safetensors")
    expected = logits(exported(plain, tmp_path / "expected"))
    np.testing.assert_array_equal(logits(exported(folder, tmp_path / "float")), expected)
    ours = logits(exported(folder, tmp_path / "small", "--precision", f"int{way.bits}", "--no-compare"))
    assert np.abs(ours - expected).max() < 0.05 * np.abs(expected).max()  # activations are rounded to 8 bits


def test_eight_bits_hold_four_exactly(base: Path, tmp_path: Path) -> None:
    folder, made = write_quantized(tmp_path / "quantized", base, Way("awq"))
    bundle = exported(folder, tmp_path / "bundle", "--precision", "int8", "--no-compare")
    tensors = {name: v.const_value for name, v in ir.load(bundle / "model.onnx").graph.initializers.items()}
    codes = tensors[f"{DOWN}.weight.q8"].numpy().reshape(64, -1)  # type: ignore[union-attr]
    np.testing.assert_array_equal(codes, made[f"{DOWN}.weight"].codes)


def test_matrices_left_in_float_get_eight_bits(base: Path, tmp_path: Path) -> None:
    left = (f"{QUERY}", "model.layers.1.mlp.down_proj")
    folder, made = write_quantized(
        tmp_path / "quantized", base, Way("awq"), lambda name: name.endswith("_proj") and name not in left
    )
    bundle = exported(folder, tmp_path / "bundle", "--precision", "int4", "--no-compare")
    manifest = json.loads((bundle / "recycle.json").read_text())
    matrices = manifest["quantization"]["source"]["matrices"]
    assert matrices[f"{DOWN}.weight"] == {"stored": "floats", "computed": "8 bits in blocks of 32, zero points"}
    packed = matrices["model.layers.0.self_attn.qkv_proj.weight"]  # of which q is a float
    assert packed == {
        "stored": "floats and AWQ, 4 bits in groups of 32",
        "computed": "8 bits in blocks of 64, zero points and 4 bits in blocks of 32, zero points",
    }
    expected = logits(exported(folder, tmp_path / "float"))
    assert np.abs(logits(bundle) - expected).max() < 0.05 * np.abs(expected).max()
    assert len(made) == 12


def test_a_second_rounding_is_a_choice(base: Path, tmp_path: Path) -> None:
    folder, _ = write_quantized(tmp_path / "quantized", base, Way(CT, bits=8))
    out = tmp_path / "bundle"
    refused = run("export", folder, out, "--precision", "int4")
    assert_refused(refused, 2, "compressed-tensors, 8 bits in groups of 32", "int8 keeps them", "--requantize")
    result = run("export", folder, out, "--precision", "int4", "--requantize", "--no-tune", "--force-quality")
    assert result.exit_code == 0, result.output
    assert "rounded a second time: compressed-tensors, 8 bits in groups of 32 (" in result.stdout
    exported(folder, tmp_path / "mse", "--precision", "int4", "--method", "mse", "--force-quality")
    manifest = json.loads((tmp_path / "mse" / "recycle.json").read_text())
    assert list(manifest["quantization"]["requantized"]) == ["compressed-tensors, 8 bits in groups of 32"]
    assert_refused(run("export", folder, out, "--requantize", "--force"), 2, "--requantize", "fp32")
    exported(folder, tmp_path / "float")
    result = run("quantize", tmp_path / "float", tmp_path / "later", "--method", "mse", "--force-quality")
    assert "rounded a second time: compressed-tensors" in result.stdout


def test_inspect_says_what_is_stored_and_what_is_computed(base: Path, tmp_path: Path) -> None:
    folder, _ = write_quantized(tmp_path / "quantized", base, Way("gptq", version=2))
    checkpoint = json.loads(run("inspect", folder, "--json").stdout)
    assert checkpoint["matrices"][f"{DOWN}.weight"] == {"stored": "GPTQ, 4 bits in groups of 32"}
    assert checkpoint["matrices"]["model.embed_tokens.weight"] == {"stored": "F32"}
    bundle = exported(folder, tmp_path / "bundle", "--precision", "int4")
    described = json.loads(run("inspect", bundle, "--json").stdout)
    assert described["quantization"]["source"]["fidelity"] == "as stored"
    assert described["matrices"][f"{DOWN}.weight"] == {
        "stored": "GPTQ, 4 bits in groups of 32", "computed": "4 bits in blocks of 32, zero points",
    }  # fmt: skip
    for path in (folder, bundle):
        text = " ".join(run("inspect", path, "--matrices").stdout.split())
        assert "GPTQ, 4 bits in groups of 32" in text
        assert DOWN in text
        assert DOWN not in run("inspect", path).stdout


def test_a_checkpoint_keeps_the_base_as_it_is(base: Path, tmp_path: Path) -> None:
    folder, _ = write_quantized(tmp_path / "quantized", base, Way("awq"))
    assert run("attach", folder, tmp_path / "checkpoint").exit_code == 0
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    exported(tmp_path / "checkpoint", tmp_path / "bundle", "--precision", "int4", "--no-compare")


def edit(**values: object) -> Callable[[Path], None]:
    """Change fields of the quantization_config."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"].update(values)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def change(edited: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file(edited(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return damage


def put(name: str, value: Callable[[np.ndarray], np.ndarray] | None) -> Callable[[Path], None]:
    """Change a tensor; None leaves it out."""

    def edited(tensors: Tensors) -> Tensors:
        old = tensors.pop(name)
        return tensors if value is None else {**tensors, name: value(old)}

    return change(edited)


def scheme(**values: object) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32, **values}
    return {"targets": ["Linear"], "weights": weights}


GPTQ, AWQ, PACKED = Way("gptq"), Way("awq"), Way(CT)
DAMAGE: dict[str, tuple[Way, Callable[[Path], None], tuple[str, ...]]] = {
    "bitsandbytes": (GPTQ, edit(quant_method="bitsandbytes"), ("'bitsandbytes'", "gptq, awq, compressed-tensors")),
    "fp8": (GPTQ, edit(quant_method="fp8"), ("'fp8'", "float32")),
    "no method": (GPTQ, edit(quant_method=None), ("quant_method None",)),
    "three bits": (GPTQ, edit(bits=3), ("gptq", "bits 3", "4 or 8")),
    "groups of 8": (GPTQ, edit(group_size=8), ("group_size 8", "multiple of 16")),
    "another kernel's packing": (GPTQ, edit(checkpoint_format="marlin"), ("checkpoint_format 'marlin'", "gptq_v2")),
    "rules for single modules": (
        GPTQ, edit(dynamic={r"+:.*down.*": {"bits": 8}}), ("dynamic", "one kind of groups for all"),
    ),
    "groups of another size": (
        GPTQ, edit(group_size=64), ("scales has shape", "groups of 64", "mixed bits or groups"),
    ),
    "bits of another number": (GPTQ, edit(bits=8), ("mixed bits or groups",)),
    "act-order": (GPTQ, put(f"{DOWN}.g_idx", lambda a: a[::-1].copy()), ("g_idx", "act-order", "static groups")),
    "a zero point that nobody knows": (
        GPTQ, put(f"{DOWN}.qzeros", lambda a: np.full_like(a, -1)), ("qzeros", "version 1", "'gptq_v2'"),
    ),
    "no scales": (GPTQ, put(f"{DOWN}.scales", None), (f"{DOWN}.scales", "missing", "qweight")),
    "integers for scales": (GPTQ, put(f"{DOWN}.scales", lambda a: a.astype(np.int32)), ("scales", "I32", "F32")),
    "floats for integers": (GPTQ, put(f"{DOWN}.qweight", lambda a: a.astype(np.float32)), ("qweight", "F32", "I32")),
    "a row of integers": (GPTQ, put(f"{DOWN}.qweight", lambda a: a.reshape(-1)), ("qweight", "a matrix of I32")),
    "infinite scales": (GPTQ, put(f"{DOWN}.scales", lambda a: a * np.float16(np.inf)), ("not finite",)),
    "no quantized matrix": (
        GPTQ, change(lambda t: {n: v for n, v in t.items() if "_proj" not in n}), ("no tensor ends with '.qweight'",),
    ),
    "another size of matrix": (
        GPTQ, put(f"{DOWN}.qweight", lambda a: np.concatenate([a, a])), ("mixed bits or groups",),
    ),
    "AWQ for another kernel": (AWQ, edit(version="gemv"), ("awq", "version 'gemv'", "'gemm'")),
    "AWQ of eight bits": (AWQ, edit(bits=8), ("bits 8", "expected 4")),
    "AWQ without zero points": (AWQ, put(f"{DOWN}.qzeros", None), ("qzeros", "missing")),
    "activations quantized too": (
        PACKED, edit(config_groups={"g": {**scheme(), "input_activations": {"num_bits": 8}}}), ("W4A16",),
    ),
    "mixed groups": (
        PACKED, edit(config_groups={"a": scheme(), "b": scheme(group_size=64)}), ("config_groups", "mixed"),
    ),
    "no groups": (PACKED, edit(config_groups=None), ("config_groups",)),
    "another format": (PACKED, edit(format="nvfp4-pack-quantized"), ("nvfp4-pack-quantized", "'pack-quantized'")),
    "floats of four bits": (PACKED, edit(config_groups={"g": scheme(type="float")}), ("type 'float'", "'int'")),
    "a scale for a whole matrix": (PACKED, edit(config_groups={"g": scheme(strategy="tensor")}), ("'tensor'",)),
    "quantized caches": (PACKED, edit(kv_cache_scheme={"num_bits": 8}), ("kv_cache_scheme",)),
    "rotations": (PACKED, edit(transform_config={"config_groups": {"R1": {}}}), ("transform_config",)),
    "no zero points": (PACKED, put(f"{DOWN}.weight_zero_point", None), ("weight_zero_point", "missing")),
    "another shape": (
        PACKED, put(f"{DOWN}.weight_shape", lambda a: a * 2), ("weight_shape", "says [128, 192]"),
    ),
    "no shape": (PACKED, put(f"{DOWN}.weight_shape", None), ("weight_shape", "missing")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_understood_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    way, damage, words = DAMAGE[name]
    folder, _ = write_quantized(tmp_path / "quantized", base, way)
    damage(folder)
    assert_refused(run("export", folder, tmp_path / "out", "--precision", "int4"), 2, *words)
    assert names(tmp_path) == ["quantized"]
