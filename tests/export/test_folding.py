"""Factors for columns: less error of rounding, and the model stays the function that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from recycle_onnx.bundle import Bundle
from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.export import Calibration, ExportOptions, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.export.block_quantizer import dequantize
from recycle_onnx.export.calibrated import folding
from recycle_onnx.export.calibrated.folding import Folding, column_factors, origins
from recycle_onnx.export.calibrated.gptq import Inputs, quantize_by_moments
from recycle_onnx.export.fidelity import Fidelity
from recycle_onnx.export.flavours import FLAVOURS
from recycle_onnx.export.lazy import load_lazily, weights_of
from tests.helpers import tiny

Floats = NDArray[np.float32]
FOUR = Quantization(method="calibrated", keep=())


def uneven(width: int, seed: int) -> Floats:
    return np.exp(np.random.default_rng(seed).normal(0, 0.5, width)).astype(np.float32)


@pytest.fixture(scope="module")
def base() -> BaseConfig:
    return tiny.tiny_config(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2)


@pytest.fixture(scope="module", params=sorted(FLAVOURS))
def bundle(request: pytest.FixtureRequest, base: BaseConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices have columns of very different sizes."""
    folder = tmp_path_factory.mktemp("uneven")
    tiny.write_base(folder / "base", base)
    tensors = load_file(folder / "base" / "model.safetensors")
    for seed, name in enumerate(sorted(tensors)):
        if "_proj" in name:
            tensors[name] = tensors[name] * uneven(tensors[name].shape[1], seed)
    save_file(tensors, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    export(folder / "base", folder / "bundle", ExportOptions(flavour=request.param))
    return folder / "bundle"


def layer_matrices(bundle: Path) -> set[str]:
    weights = weights_of(load_lazily(Bundle.open(bundle).graph("full"), {}))
    return {name for name, weight in weights.items() if "layers" in name and len(weight.shape) == 2}


def quantized(bundle: Path, out: Path, text: Path, bits: float) -> tuple[int, float]:
    """How many values got factors, and the divergence from float32 on the text that it was calibrated with."""
    options = QuantizeOptions(calibration=Calibration(text, bits), text=text, force_quality=True)
    manifest, cost = quantize_bundle(bundle, out, Quantization(method="calibrated"), options)
    assert manifest.quantization is not None
    assert isinstance(cost, Fidelity)
    return int(manifest.quantization["calibration"]["folded"]), cost.divergence


def test_norms_and_gated_products_can_be_divided(bundle: Path) -> None:
    matrices = layer_matrices(bundle)
    model = load_lazily(Bundle.open(bundle).graph("full"), {})
    before = sorted(name for names in origins(model, matrices).values() for name in names)
    parts = ("input_layernorm", "mlp.up_proj", "post_attention_layernorm")
    assert before == [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in parts]


def test_what_another_reads_too_is_not_divided(bundle: Path) -> None:
    matrices = layer_matrices(bundle) - {"model.layers.1.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"}
    model = load_lazily(Bundle.open(bundle).graph("full"), {})
    before = sorted(name for names in origins(model, matrices).values() for name in names)
    assert before == [
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.mlp.up_proj.weight",
    ]


def test_a_folded_model_in_eight_bits_computes_what_the_model_did(
    bundle: Path, calibration_text: Path, tmp_path: Path
) -> None:
    folded, divergence = quantized(bundle, tmp_path / "folded", calibration_text, 8.6)  # all matrices get 8 bits
    assert folded == 6
    plain = quantize_bundle(bundle, tmp_path / "int8", Quantization(bits=8), QuantizeOptions(compare=True))[1]
    assert isinstance(plain, Fidelity)
    assert divergence < 2 * plain.divergence


def test_factors_bring_four_bits_closer_to_float32(
    bundle: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, divergence = quantized(bundle, tmp_path / "folded", calibration_text, 5.13)
    assert folded == 6
    monkeypatch.setattr(folding, "WORTH", 0.0)  # no factors are worth it
    not_folded, plain = quantized(bundle, tmp_path / "plain", calibration_text, 5.13)
    assert not_folded == 0
    assert divergence < 0.85 * plain


def inputs_of(width: int) -> Floats:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((4 * width, width)) @ (np.eye(width) + random.standard_normal((width, width)) / 16)
    return inputs.astype(np.float32)


def error(matrix: Floats, inputs: Floats, factors: Floats | None) -> float:
    """What 4 bits leave in the products of `matrix` with `inputs`."""
    known = Inputs.of(inputs.T @ inputs / len(inputs))
    if factors is not None:
        known.divide(factors)
        matrix, inputs = matrix * factors, inputs / factors
    values = dequantize(quantize_by_moments(matrix, known, FOUR), FOUR)
    return float(np.square(inputs @ (values - matrix).T).mean())


@pytest.mark.parametrize(("of_inputs", "most"), [(False, 0.8), (True, 0.99)])
def test_uneven_columns_get_factors_that_leave_less_error(most: float, *, of_inputs: bool) -> None:
    matrix, inputs = np.random.default_rng(2).standard_normal((48, 128)).astype(np.float32), inputs_of(128)
    if of_inputs:
        inputs = inputs * uneven(128, 3)
    else:
        matrix = matrix * uneven(128, 3)
    factors = column_factors([matrix[:16], matrix[16:]], Inputs.of(inputs.T @ inputs / len(inputs)), FOUR)
    assert factors is not None
    assert error(matrix, inputs, factors) < most * error(matrix, inputs, None)


def test_even_columns_get_none() -> None:
    matrix, inputs = np.random.default_rng(2).standard_normal((48, 128)).astype(np.float32), inputs_of(128)
    assert column_factors([matrix], Inputs.of(inputs.T @ inputs / len(inputs)), FOUR) is None


def test_columns_of_zeros_and_inputs_never_seen_do_no_harm() -> None:
    matrix, inputs = np.random.default_rng(2).standard_normal((48, 128)).astype(np.float32), inputs_of(128)
    matrix *= uneven(128, 3) ** 2
    matrix[:, :7], inputs[:, 5:12] = 0, 0
    factors = column_factors([matrix], Inputs.of(inputs.T @ inputs / len(inputs)), FOUR)
    assert factors is not None
    assert np.isfinite(factors).all()
    assert folding.LARGEST**-1 * 0.999 <= factors.min() <= factors.max() <= folding.LARGEST * 1.001
    assert error(matrix, inputs, factors) < 0.8 * error(matrix, inputs, None)


def test_factors_change_weights_by_name() -> None:
    own = Folding({"a": np.array([2, 3], np.float32)}, {"a": np.array([5], np.float32), "b": np.array([7, 1])})
    np.testing.assert_array_equal(own.applied("a", np.ones((1, 2), np.float32)), [[10, 15]])
    np.testing.assert_array_equal(own.applied("b", np.ones(2, np.float32)), [7, 1])
    np.testing.assert_array_equal(own.applied("c", np.ones(2, np.float32)), [1, 1])
