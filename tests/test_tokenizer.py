"""What tokenizer.json says of batches is not obeyed: it would clip prompts, or pad them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

import recycle_onnx
from recycle_onnx.evaluation.perplexity import perplexity
from recycle_onnx.export import export
from recycle_onnx.tokenizer import load_tokenizer
from tests.helpers import tiny

LONG = "the cat sat on the mat, the dog ran to the pen"


@pytest.fixture(scope="module", params=["truncated", "padded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer.json was saved in the middle of batches."""
    folder = tiny.write_base(tmp_path_factory.mktemp("batching") / "model", tiny.tiny_config())
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if request.param == "truncated":
        saved.enable_truncation(max_length=4)
    else:
        saved.enable_padding(length=40, pad_id=7, pad_token="b")
    saved.save(str(folder / "tokenizer.json"))
    return folder


def test_texts_are_neither_clipped_nor_padded(folder: Path) -> None:
    tokenizer, expected = load_tokenizer(folder), tiny.tokenizer().encode(LONG).ids
    assert tokenizer.encode(LONG).ids == expected
    assert [encoding.ids for encoding in tokenizer.encode_batch(["a", LONG])][1] == expected
    assert 4 < len(expected) < 40


def test_prompts_and_measurements_are_those_of_the_plain_tokenizer(folder: Path, tmp_path: Path) -> None:
    plain = tiny.write_base(tmp_path / "plain", tiny.tiny_config())
    for name, source in (("saved", folder), ("other", plain)):
        export(source, tmp_path / name)
    saved, other = (recycle_onnx.load(tmp_path / name) for name in ("saved", "other"))
    assert saved.encode(LONG) == other.encode(LONG)
    assert perplexity(saved, [LONG, "a hen"]) == perplexity(other, [LONG, "a hen"])
