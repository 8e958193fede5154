"""Blocks of small integers: what ONNX Runtime's kernels make of them, and how large the error is."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import METHODS, Blocks, Quantization, dequantize, quantize
from recycle_onnx.runtime.ort.sessions import session_options


def heavy_tailed(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (rows, width)).astype(np.float32)


def quantizations() -> list[Quantization]:
    return [
        Quantization(bits, size, symmetric, method, ())
        for bits in (4, 8)
        for size in (16, 32, 64, 128)
        for symmetric in (False, True)
        for method in METHODS
    ]


def run(operator: str, blocks: Blocks, how: Quantization, feed: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """One com.microsoft node in ONNX Runtime; inputs are `feed`, then the blocks, in the operator's order."""
    packed = blocks.packed
    order = ["x", "packed", "scales", "zero_points"]
    if operator == "GatherBlockQuantized":
        packed, order = packed.reshape(len(packed), -1), ["packed", "x", "scales", "zero_points"]
    stored = {"packed": packed, "scales": blocks.scales, "zero_points": blocks.zero_points}
    stored = {name: array for name, array in stored.items() if array is not None}
    node = helper.make_node(
        operator,
        [name for name in order if name in stored or name == "x"],
        ["y"],
        domain="com.microsoft",
        bits=how.bits,
        block_size=how.block_size,
        **attributes,
    )
    kind = TensorProto.INT64 if feed["x"].dtype == np.int64 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, list(feed["x"].shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), session_options(1)).run(None, feed)[0]


@pytest.mark.parametrize("how", quantizations(), ids=str)
def test_the_kernels_compute_with_the_dequantized_matrix(how: Quantization) -> None:
    matrix = heavy_tailed(24, 128)
    blocks = quantize(matrix, how)
    expected = dequantize(blocks, how)
    product = run("MatMulNBits", blocks, how, {"x": np.eye(128, dtype=np.float32)}, K=128, N=24)
    np.testing.assert_allclose(product, expected.T, atol=1e-5)
    ids = np.array([[3, 0], [23, 7]])
    rows = run("GatherBlockQuantized", blocks, how, {"x": ids}, gather_axis=0, quantize_axis=1)
    np.testing.assert_allclose(rows, expected[ids], atol=1e-5)


@pytest.mark.parametrize("how", quantizations(), ids=str)
def test_a_value_moves_by_a_part_of_its_blocks_range(how: Quantization) -> None:
    matrix = heavy_tailed(50, 256)
    error = np.abs(dequantize(quantize(matrix, how), how) - matrix).reshape(50, -1, how.block_size).max(-1)
    spread = np.ptp(matrix.reshape(50, -1, how.block_size), axis=-1)
    assert (error <= spread * (0.4 if how.bits == 4 else 0.03)).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_searching_the_range_errs_less_than_rounding(symmetric: bool, size: int) -> None:
    matrix = heavy_tailed(64, 512)

    def error(method: str) -> float:
        how = Quantization(4, size, symmetric, method, ())
        return float(np.square(dequantize(quantize(matrix, how), how) - matrix).mean())

    assert error("mse") < 0.97 * error("rtn")


@given(
    value=st.floats(-1e4, 1e4, width=32),
    rows=st.integers(1, 5),
    how=st.sampled_from(quantizations()),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_equal_values_survive(value: float, rows: int, how: Quantization) -> None:
    matrix = np.full((rows, 128), value, np.float32)
    allowed = 0.13 if how.bits == 4 else 0.01
    np.testing.assert_allclose(dequantize(quantize(matrix, how), how), matrix, rtol=allowed, atol=1e-6)


def test_many_rows_are_quantized_as_few_are() -> None:
    matrix = heavy_tailed(4096 + 5, 64)
    how = Quantization()
    whole, last = quantize(matrix, how), quantize(matrix[-5:], how)
    for part, expected in zip(whole, last, strict=True):
        np.testing.assert_array_equal(part[-5:], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits is 3; expected one of: 4, 8"),
        ({"block_size": 48}, "block-size is 48"),
        ({"method": "magic"}, "method is magic; expected one of: mse, rtn"),
        ({"keep": ("lm-head",)}, "'lm-head'; expected some of: embed_tokens"),
    ],
)
def test_what_no_kernel_knows_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quantization(**options)


def test_the_method_that_was_asked_for_is_used_and_recorded() -> None:
    assert [Quantization(bits=bits).method for bits in (4, 8)] == ["mse", "rtn"]
    asked = Quantization(bits=8, method="mse").for_matrix("layers.0.mlp.up_proj.weight", 128)
    assert asked is not None
    assert asked.method == "mse"
    kept = Quantization(bits=4).for_matrix("projection.weight", 128)
    assert kept is not None
    assert (kept.bits, kept.method) == (8, "rtn")
