"""Weights go from the checkpoint into the bundle some rows at a time, whatever the precision."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.checkpoint import Checkpoint, attach
from recycle_onnx.export import (
    ExportOptions,
    HalfPrecision,
    Quantization,
    QuantizeOptions,
    export,
    lazy,
    quantize_bundle,
)
from recycle_onnx.export.block_quantizer import quantize
from recycle_onnx.export.flavours import ORT, Precision
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.provenance import write_source
from tests.helpers import tiny
from tests.helpers.command import names, run

PRECISIONS = [
    Quantization(4),
    Quantization(4, method="rtn", symmetric=True),
    Quantization(4, method="rtn", activations="fp16"),
    Quantization(8),
    HalfPrecision(),
]
UNTIED = tiny.tiny_config(tied_embeddings=False)


@contextmanager
def few_rows() -> Iterator[None]:
    """So few at once that even a tiny model's matrices come in several pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "VALUES_AT_ONCE", 200)
        yield


@pytest.fixture(scope="module", params=[tiny.tiny_config(), UNTIED], ids=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("streaming") / "model", request.param, dtype="bfloat16")


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Path:
    with few_rows():
        export(checkpoint, checkpoint.parent / "plain")
    return checkpoint.parent / "plain"


@pytest.fixture(scope="module")
def other(checkpoint: Path) -> Manifest:
    """In a precision that is none of those compared."""
    options = ExportOptions(quantization=Quantization(4, 16), compare=False)
    with few_rows():
        return export(checkpoint, checkpoint.parent / "other", options).manifest


@pytest.mark.parametrize("how", PRECISIONS, ids=str)
def test_a_checkpoint_and_its_bundle_give_the_same_bytes(
    how: Precision, checkpoint: Path, plain: Path, other: Manifest, tmp_path: Path
) -> None:
    with few_rows():
        straight = export(checkpoint, tmp_path / "straight", ExportOptions(quantization=how, compare=False)).manifest
        again, _ = quantize_bundle(plain, tmp_path / "again", how, QuantizeOptions(compare=False))
    assert straight.files == again.files
    assert straight.files["model.onnx.data"] != other.files["model.onnx.data"]


def test_pieces_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", UNTIED)
    files = []
    for values in (10**9, 200):
        monkeypatch.setattr(lazy, "VALUES_AT_ONCE", values)
        files += [
            export(checkpoint, tmp_path / f"int4-{values}", ExportOptions(quantization=Quantization())).manifest.files
        ]
    assert files[0] == files[1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_layout_in_memory_changes_no_block(order: str) -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    expected, found = quantize(matrix, Quantization()), quantize(np.array(matrix, order=order), Quantization())
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def peak_of_writing(checkpoint: Path, folder: Path, how: Precision | None) -> int:
    """Bytes allocated at once while the full model is written."""
    from recycle_onnx.export.full_model import build_full_model

    folder.mkdir()
    with Checkpoint.open(checkpoint) as source:
        tracemalloc.start()
        ORT.rewriter(how, lambda *_: None).save(
            build_full_model(source.base, source.base_weights), folder / "model.onnx"
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("how", [None, Quantization(4), Quantization(8), HalfPrecision()], ids=str)
def test_memory_stays_far_below_the_weights(
    how: Precision | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """34 MB of float32, a vocabulary of 17 MB: with 64 kB at once, a matrix or two of 1 MB are held."""
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_heads": 8, "head_dim": 64, "vocab_size": 8192}
    config = tiny.tiny_config(**sizes, num_layers=6)
    checkpoint = tiny.write_base(tmp_path / "base", config, dtype="bfloat16")
    monkeypatch.setattr(lazy, "VALUES_AT_ONCE", 1 << 14)
    whole = 4 * sum(int(np.prod(shape)) for shape in config.tensor_shapes().values())
    assert peak_of_writing(checkpoint, tmp_path / "small", how) < whole / 3
    monkeypatch.setattr(lazy, "VALUES_AT_ONCE", 1 << 40)
    if how is None:  # the embedding at once: the measure sees it
        assert peak_of_writing(checkpoint, tmp_path / "large", how) > whole / 3


def test_a_quantized_export_writes_no_float32_file(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    save = Rewriter.save

    def recorded(self: Rewriter, model: object, path: Path) -> None:
        written.append((type(self).__name__, path.name))
        save(self, model, path)  # type: ignore[arg-type]

    monkeypatch.setattr(Rewriter, "save", recorded)
    export(tiny_checkpoint, tmp_path / "small", ExportOptions(quantization=Quantization(), compare=False))
    assert written == [("OrtQuantizer", "model.onnx"), ("OrtQuantizer", "recycler.onnx")]
    export(tiny_checkpoint, tmp_path / "compared", ExportOptions(quantization=Quantization()))
    assert ("Rewriter", "model.onnx") in written
    assert names(tmp_path) == ["compared", "small"]


def test_large_models_are_compared_only_when_asked(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recycle_onnx.export.heavy.HEAVY", 1000)
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog on the log. " * 40)
    for options, compared in (((), False), (("--compare",), True), (("--text", tmp_path / "text.txt"), True)):
        done = run(
            "export", tiny_checkpoint, tmp_path / "small", "--precision", "int4", "--method", "mse", "--force", *options
        )
        assert done.exit_code == 0, done.stderr
        assert ("perplexity" in done.stdout, "--compare" in done.stdout) == (compared, not compared)
        quantization = Bundle.open(tmp_path / "small").manifest.quantization
        assert quantization is not None
        assert 0 <= quantization["fidelity"]["epsilon"] < 100
    refused = run("export", tiny_checkpoint, tmp_path / "plain", "--compare")
    assert refused.exit_code == 2
    assert "--compare is about quantization" in refused.stderr
    assert run("export", tiny_checkpoint, tmp_path / "plain", "--no-compare").exit_code == 0  # asks for nothing


@pytest.mark.parametrize("reference", [False, True], ids=["copied", "referred to"])
def test_a_bundle_says_where_its_base_came_from(reference: bool, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    source = {"kind": "hub", "id": "org/name", "revision": "main", "commit": "c" * 40}
    write_source(base, source)
    attach(base, tmp_path / "model", reference=reference)
    assert export(tmp_path / "model", tmp_path / "bundle").manifest.provenance["source"] == source
    (base / "source.json").unlink()
    (tmp_path / "model" / "source.json").unlink(missing_ok=True)
    assert export(tmp_path / "model", tmp_path / "other").manifest.provenance["source"] is None
