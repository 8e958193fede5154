"""Vectors of texts: how they are pooled, cut and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.embedding import Embedder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.runtime.padded_batch import batches, read_batch, takes_batches
from tests.helpers import tiny
from tests.helpers.prompts import LONG_STORY

TEXTS = ["Once upon a time", "there was a dog", "Once upon a time"]


def states(model: Model, text: str) -> np.ndarray:
    """Hidden states [S, H] after the final norm, read at once."""
    half, ids = model.decoder("full").full, model.encode(text)
    made = np.empty((len(ids), half.spec.hidden_size), np.float32)
    assert isinstance(half, Half)
    half.read(ids, None, made)
    return made


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_vectors_are_pooled_hidden_states_of_length_1(sample_model: Model) -> None:
    expected = states(sample_model, TEXTS[0])
    assert sample_model.embed(TEXTS[0]) == pytest.approx(unit(expected.mean(0)), abs=1e-6)
    assert sample_model.embed(TEXTS[0], pooling="last") == pytest.approx(unit(expected[-1]), abs=1e-6)
    assert np.linalg.norm(sample_model.embed(TEXTS), axis=1) == pytest.approx(np.ones(3), abs=1e-6)


def test_a_text_gives_a_vector_and_a_list_gives_one_each(sample_model: Model) -> None:
    size = sample_model.bundle.manifest.base["hidden_size"]
    alone, several = sample_model.embed(TEXTS[1]), sample_model.embed(TEXTS)
    assert (alone.shape, several.shape, alone.dtype) == ((size,), (3, size), np.float32)
    assert np.array_equal(several[1], alone)  # whatever was read before
    assert np.array_equal(several[0], several[2])
    assert sample_model.embed(TEXTS[:1]).shape == (1, size)


def test_token_ids_are_texts_too(sample_model: Model) -> None:
    ids = [sample_model.encode(text) for text in TEXTS]
    assert np.array_equal(sample_model.embed(ids), sample_model.embed(TEXTS))
    assert np.array_equal(sample_model.embed(ids[0]), sample_model.embed(TEXTS[0]))
    assert np.array_equal(sample_model.embed(np.array(ids[0])), sample_model.embed(TEXTS[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_text_of_several_chunks_is_pooled_as_one(pooling: str, sample_model: Model) -> None:
    assert len(sample_model.encode(LONG_STORY)) > sample_model.prefill_chunk
    made = states(sample_model, LONG_STORY)
    expected = unit(made.mean(0) if pooling == "mean" else made[-1])
    assert sample_model.embed(LONG_STORY, pooling=pooling) == pytest.approx(expected, abs=1e-5)


def test_fewer_dimensions_are_the_first_ones_at_length_1(sample_model: Model) -> None:
    whole = sample_model.embed(TEXTS[0])
    assert sample_model.embed(TEXTS[0], dimensions=5) == pytest.approx(unit(whole[:5]), abs=1e-6)


MIXED = ["the", "the cat sat on", "a", LONG_STORY, *(f"{word} was there and sat down" for word in ("who", "I", "dog"))]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_that_are_read_side_by_side_give_the_vectors_of_each(pooling: str, sample_model: Model) -> None:
    several = sample_model.embed(MIXED, pooling=pooling)
    alone = np.stack([sample_model.embed(text, pooling=pooling) for text in MIXED])
    assert several == pytest.approx(alone, abs=1e-5)
    assert several != pytest.approx(alone[::-1], abs=1e-2)


@pytest.mark.parametrize("flavour", ["ort", "standard"])
@pytest.mark.parametrize(
    "how", [None, Quantization(8, method="rtn"), Quantization(4, method="rtn")], ids=["fp32", "int8", "int4"]
)
def test_every_kind_of_bundle_reads_batches(flavour: str, how: Quantization | None, tmp_path: Path) -> None:
    if reason := why_too_old(flavour):
        pytest.skip(reason)
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    export(base, tmp_path / "bundle", ExportOptions(flavour, how, compare=False, epsilon=False))
    texts = [[1, 2, 3], [7], [5, 6, 7, 8, 9, 10], [4, 4]]
    with recycle_onnx.load(tmp_path / "bundle", threads=1) as model:
        embedder = Embedder(model)
        assert takes_batches(embedder._half)
        assert len(batches([len(text) for text in texts])) == 1
        states = read_batch(embedder._half, texts)
        assert states.shape[:2] == (4, 6)
        alone = np.stack([embedder.vector(text) for text in texts])
        assert embedder.vectors(texts) == pytest.approx(alone, abs=1e-5)


def test_batches_are_of_short_texts_of_like_length() -> None:
    lengths = [5, 300, 5, 64, 65, 5, 3, 64, 64, 64, 64]
    made = batches(lengths)
    assert sorted(place for group in made for place in group) == list(range(len(lengths)))
    assert [[lengths[place] for place in group] for group in made] == [
        [3, 5, 5, 5], [64, 64, 64, 64], [64], [65], [300],
    ]  # fmt: skip
    assert batches([]) == []


def test_states_that_are_no_numbers_are_told_of(sample_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text of a batch must not spoil the others silently: all are read again, one at a time."""
    monkeypatch.setattr("recycle_onnx.runtime.embedding.read_batch", lambda half, texts: np.full((3, 9, 1), np.nan))
    assert np.array_equal(sample_model.embed(TEXTS), np.stack([sample_model.embed(text) for text in TEXTS]))


def test_progress_is_told_text_by_text(sample_model: Model) -> None:
    calls: list[tuple[int, int]] = []
    sample_model.embed(TEXTS, progress=lambda read, total, _: calls.append((read, total)))
    assert calls == [(0, 3), (3, 3)]  # short texts are read together
    calls.clear()
    sample_model.embed([LONG_STORY, LONG_STORY], progress=lambda read, total, _: calls.append((read, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]


def test_a_module_that_reads_other_states_changes_nothing(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    attach(base, tmp_path / "taps", NewModule(tap=("layer.1", "final_post")))
    vectors = []
    for checkpoint in (base, tmp_path / "taps"):
        export(checkpoint, tmp_path / "bundle", force=True)
        with recycle_onnx.load(tmp_path / "bundle", threads=1) as model:
            vectors.append(model.embed(["the cat", "a dog"]))
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ("", {}, "empty"),
        (["a", ""], {}, "empty"),
        ([], {}, "empty"),
        ("", {}, "expected some text to embed"),
        ([[]], {}, "empty"),
        ([[1, 99_999]], {}, "token id 99999 is outside the vocabulary"),
        ([2.5], {}, "2.5; expected a text, or token ids"),
        (None, {}, "None; expected a text, or token ids"),
        ("the cat " * 2000, {}, "leaves no room"),
        ("a", {"pooling": "max"}, "pooling is 'max'; expected one of: mean, last"),
        ("a", {"dimensions": 0}, "dimensions is 0; expected 1 to"),
        ("a", {"dimensions": 100_000}, "dimensions is 100000"),
        ("a", {"dimensions": 2.0}, "dimensions is 2.0"),
        ("a", {"dimensions": True}, "dimensions is True"),
    ],
)
def test_what_makes_no_sense_is_refused(texts: Any, options: dict[str, Any], words: str, sample_model: Model) -> None:
    with pytest.raises(InputError, match=words):
        sample_model.embed(texts, **options)


def test_a_closed_model_says_so(tiny_bundle: Path) -> None:
    model = recycle_onnx.load(tiny_bundle, threads=1)
    model.close()
    with pytest.raises(RecycleError, match="closed"):
        model.embed("the cat")
