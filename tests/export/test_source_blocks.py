"""A GGUF file's blocks reach the kernels bit by bit, or as near as is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.export.block_quantizer import unpack
from recycle_onnx.export.source_blocks import Kept, meant, parts_of, with_source
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

gguf = pytest.importorskip("gguf")
from recycle_onnx.checkpoint.sources import NamedBase, folder_of  # noqa: E402
from recycle_onnx.checkpoint.sources.gguf.integers import LAYOUTS, read_integers  # noqa: E402
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile  # noqa: E402
from tests.helpers.gguf_writer import write_gguf  # noqa: E402

CONFIG = tiny.tiny_config(hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16)
DOWN, TABLE = "blk.1.ffn_down.weight", "token_embd.weight"
EXACT, NEAR = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "Q6_K"), ("Q4_1", "Q5_1", "Q4_K", "Q5_K")


def blocks_of(kind: str, rows: int = 8, each: int = 2) -> np.ndarray:
    """Rows of random blocks whose scales are finite."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return np.random.default_rng(3).integers(0, 64, (rows, each * size), dtype=np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "base", CONFIG)


def exported(file: Path, out: Path, bits: int = 4, flavour: str = "ort") -> Path:
    with folder_of(NamedBase(str(file)), out) as folder:
        how = Quantization(bits, method="source")
        export(folder, out, ExportOptions(flavour, how, compare=False, epsilon=False))
    return out


def stored(bundle: Path, weight: str) -> dict[str, np.ndarray]:
    """The parts of a quantized matrix, as the bundle has them."""
    tensors = {name: value.const_value for name, value in ir.load(bundle / "model.onnx").graph.initializers.items()}
    return {
        name.removeprefix(f"{weight}."): tensor.numpy()
        for name, tensor in tensors.items()
        if tensor is not None and name.startswith(f"{weight}.")
    }


@pytest.mark.parametrize("kind", LAYOUTS)
def test_integers_scales_and_minima_are_those_of_ggufs_decoder(kind: str) -> None:
    rows = blocks_of(kind)
    read = read_integers(rows, kind)
    assert read is not None
    assert read.codes.max() < read.levels
    np.testing.assert_array_equal(read.values(), gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize(("bits", "kind"), [(bits, kind) for bits in (4, 8) for kind in EXACT])
def test_symmetric_blocks_are_exact(bits: int, kind: str) -> None:
    read = read_integers(blocks_of(kind), kind)
    assert read is not None
    kept = Kept()
    [part] = parts_of([read], Quantization(bits, method="source"), table=False, kept=kept)
    assert part.blocks.zero_points is None
    np.testing.assert_array_equal(part.blocks.scales, read.scales)
    np.testing.assert_array_equal(meant(part, read.codes.shape[1]), read.values())
    assert kept.exact == {kind: read.codes.size}
    assert not kept.near


@pytest.mark.parametrize(("table", "kind"), [(table, kind) for table in (False, True) for kind in NEAR])
def test_minima_cost_less_than_a_hundredth(table: bool, kind: str) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(4).standard_normal((32, 512)).astype(np.float32)
    try:
        rows = gguf.quants.quantize(values, type_)
    except NotImplementedError:  # gguf does not write k-quants: random blocks, of random scales
        rows = blocks_of(kind, 32)
    read = read_integers(rows, kind)
    assert read is not None
    kept = Kept()
    [part] = parts_of([read], Quantization(4, method="source"), table=table, kept=kept)
    if kind == "Q4_1":
        assert (part.columns > read.codes.shape[1]) == (not table)
    error = np.square(meant(part, read.codes.shape[1]) - read.values()).mean() / np.square(read.values()).mean()
    assert 0 < error**0.5 < 0.01
    assert kept.summary("file")["deviation"] == pytest.approx(error**0.5, rel=1e-3, abs=1e-6)


def test_a_block_that_is_one_value_throughout_stays_so() -> None:
    read = read_integers(blocks_of("Q4_1"), "Q4_1")
    assert read is not None
    assert read.minima is not None
    read.scales[:, 0], read.minima[:, 0], read.minima[:, 1] = 0, -0.75, read.scales[:, 1] * -4
    for table in (True, False):
        [part] = parts_of([read], Quantization(4, method="source"), table=table, kept=Kept())
        np.testing.assert_allclose(meant(part, read.codes.shape[1])[:, :32], -0.75, rtol=0.02)


@pytest.mark.parametrize(("kind", "bits", "zero"), [("Q4_0", 4, 8), ("Q8_0", 8, 128)])
def test_the_bundle_has_the_files_codes_and_scales_bit_by_bit(
    base: Path, tmp_path: Path, kind: str, bits: int, zero: int
) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, kind)
    bundle = exported(file, tmp_path / "bundle", bits)
    read = GgufFile(file)
    for name, weight in ((DOWN, "model.layers.1.mlp.down_proj.weight"), (TABLE, "model.embed_tokens.weight")):
        expected = read_integers(read.raw(read.tensors[name]), kind)
        parts = stored(bundle, weight)
        assert expected is not None
        assert expected.zero == zero
        assert "zero_points" not in parts
        codes = unpack(parts[f"q{bits}"], bits).reshape(expected.codes.shape)
        np.testing.assert_array_equal(codes, expected.codes)
        np.testing.assert_array_equal(parts["scales"].reshape(expected.scales.shape), expected.scales)


def test_a_nibble_that_differs_reaches_the_bundle(base: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, "Q4_0")
    before = stored(exported(file, tmp_path / "before"), "model.layers.1.mlp.down_proj.weight")["q4"]
    data = bytearray(file.read_bytes())
    data[GgufFile(file).tensors[DOWN].offset + 2] ^= 1  # the first block's first nibble, behind its scale
    file.write_bytes(data)
    after = stored(exported(file, tmp_path / "after"), "model.layers.1.mlp.down_proj.weight")["q4"]
    assert np.flatnonzero(before.reshape(-1) != after.reshape(-1)).tolist() == [0]
    assert before.reshape(-1)[0] ^ after.reshape(-1)[0] == 1


@pytest.mark.parametrize("flavour", ["ort", "standard"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_logits_are_the_sources_but_for_rounded_activations(
    base: Path, tmp_path: Path, kind: str, flavour: str
) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, kind)
    with folder_of(NamedBase(str(file)), tmp_path / "float") as folder:
        export(folder, tmp_path / "float", ExportOptions(flavour=flavour))
    bundle = exported(file, tmp_path / "bundle", flavour=flavour)
    ids = list(range(20, 36))
    first, second = (recycle_onnx.load(path).decoder("full") for path in (tmp_path / "float", bundle))
    theirs, ours = (decoder.full_step(ids, keep=len(ids)) for decoder in (first, second))
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    one = [recycle_onnx.load(bundle).decoder("full")]
    rows = [one[0].full_step([token], keep=1)[0].copy() for token in ids]
    np.testing.assert_allclose(np.array(rows), ours, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize(
    ("kind", "bits", "method"),
    [("Q4_0", 4, "source"), ("Q4_1", 4, "source"), ("Q8_0", 8, "source"), ("Q8_0", 4, "mse"), ("F16", 8, "rtn")],
)
def test_source_is_preferred_where_the_file_has_as_few_bits(
    base: Path, tmp_path: Path, kind: str, bits: int, method: str
) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, kind)
    with folder_of(NamedBase(str(file)), tmp_path / "out") as folder, Checkpoint.open(folder) as checkpoint:
        how = Quantization(bits)
        assert with_source(how, checkpoint.base_weights, preferred=True).method == method
        assert with_source(how, checkpoint.base_weights, preferred=False) == how


def test_the_report_says_what_is_stored_and_what_it_costs(base: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", base, "Q4_1")
    result = run("export", file, tmp_path / "out", "--precision", "int4")
    assert result.exit_code == 0, result.output
    assert "stored from model.gguf: Q4_1 (" in result.stdout
    assert "perplexity of model.gguf " in result.stdout
    assert ", here " in result.stdout
    assert "stored from model.gguf" in run("inspect", tmp_path / "out").stdout


def test_there_must_be_blocks_to_keep(base: Path, tmp_path: Path) -> None:
    result = run("export", base, tmp_path / "out", "--precision", "int4", "--method", "source")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--method source keeps; leave --method out" in result.stderr
    exported_ = run("export", base, tmp_path / "bundle")
    assert exported_.exit_code == 0
    assert_refused(run("quantize", tmp_path / "bundle", tmp_path / "out", "--method", "source"), 2, "`export`", "GGUF")
    assert_refused(run("export", base, tmp_path / "out", "--method", "source"), 2, "--precision int4")
    assert names(tmp_path) == ["bundle"]
