"""Quantized bases: dequantized they are what compressed-tensors says they are, in every family's own layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.helpers.command import run
from tests.helpers.quantized import Way, write_quantized
from tests.reference import families

IDS = list(range(20, 36))
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def logits(bundle: Path) -> np.ndarray:
    return recycle_onnx.load(bundle, threads=1).decoder("full").full_step(IDS, keep=len(IDS)).copy()


@pytest.mark.parametrize("scales", TYPES)
@pytest.mark.parametrize(
    "way",
    [
        Way("compressed-tensors"), Way("compressed-tensors", symmetric=True), Way("compressed-tensors", group=-1),
        Way("compressed-tensors", bits=8, group=-1, symmetric=True), Way("compressed-tensors", bits=8, group=16),
    ],
    ids=str,
)  # fmt: skip
def test_the_librarys_own_packing_is_read_to_the_bit(way: Way, scales: str, tmp_path: Path) -> None:
    """(The library rounds products to the type of its scales; ours are exact.)"""
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: pip install compressed-tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    config = tiny.tiny_config(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16)
    folder, made = write_quantized(tmp_path / "quantized", tiny.write_base(tmp_path / "base", config), way)
    scheme = QuantizationScheme(targets=["Linear"], weights=way.config()["config_groups"]["group_0"]["weights"])
    tensors, theirs = load_file(folder / "model.safetensors"), {}
    for name, grouped in made.items():
        module, values = name.removesuffix(".weight"), torch.from_numpy(grouped.values())
        parts = {
            "weight": values,
            "weight_scale": torch.from_numpy(grouped.scales.astype(np.float32)).to(TYPES[scales]),
        }
        centred = torch.from_numpy(grouped.zeros - (1 << (way.bits - 1))).to(torch.int8)
        packed = PackedQuantizationCompressor.compress({**parts, "weight_zero_point": centred}, scheme)
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in packed.items()}
        theirs[name] = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with Checkpoint.open(folder) as checkpoint:
        for name, expected in theirs.items():
            ours = torch.from_numpy(checkpoint.base_weights.float32(name))
            assert expected.dtype == TYPES[scales]
            assert torch.equal(ours.to(expected.dtype), expected)
            assert ours.abs().max() > 0


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gpt_neox", "gemma2"])
@pytest.mark.parametrize(
    "way", [Way("gptq", group=16), Way("awq", group=32), Way("compressed-tensors", bits=8)], ids=str
)
def test_a_familys_own_layout_of_matrices_is_kept(name: str, way: Way, tmp_path: Path) -> None:
    """Packed projections, and heads that alternate, are taken apart as integers too."""
    base = families.write(name, tmp_path / "base")
    matrix = ("_proj", "query_key_value", "dense", "h_to_4h", "4h_to_h")
    folder, made = write_quantized(tmp_path / "quantized", base, way, lambda module: module.endswith(matrix))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter, grouped in made.items():
            parameters[parameter].copy_(torch.from_numpy(grouped.values()))
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    assert run("export", folder, tmp_path / "float").exit_code == 0
    np.testing.assert_allclose(logits(tmp_path / "float"), expected, atol=1e-4 * np.abs(expected).max())
    small = run("export", folder, tmp_path / "small", "--precision", f"int{way.bits}", "--no-compare", "--json")
    assert small.exit_code == 0, small.output
    assert '"fidelity": "as stored"' in small.stdout
    assert '"near": {}' in small.stdout
    assert np.abs(logits(tmp_path / "small") - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("joint", [False, True])
def test_training_leaves_a_base_quantized_or_writes_all_of_it_in_floats(joint: bool, tmp_path: Path) -> None:
    config = tiny.tiny_config(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16)
    folder, made = write_quantized(tmp_path / "quantized", tiny.write_base(tmp_path / "base", config), Way("awq"))
    assert run("attach", folder, tmp_path / "model").exit_code == 0
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(["the cat sat on the mat, and the hen ran home. " * 9] * 9))
    options = TrainingOptions(steps=2, batch_size=2, sequence_length=32, joint=joint)
    train(tmp_path / "model", [tmp_path / "text.txt"], options)
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        kinds = {checkpoint.base_weights.integer_type(name) for name in made}
    assert kinds == ({None} if joint else {"AWQ, 4 bits in groups of 32"})
    assert run("export", tmp_path / "model", tmp_path / "bundle").exit_code == 0
