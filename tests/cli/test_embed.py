"""`recycle-onnx embed` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.runtime.model import Model
from tests.helpers.command import assert_refused, run


def test_the_vectors_are_those_of_the_model(sample_model: Model) -> None:
    bundle = sample_model.bundle.folder
    result = run("embed", bundle, "Once upon", "a time", "--pooling", "last", "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["pooling"], made["dimensions"]) == ("last", sample_model.bundle.manifest.base["hidden_size"])
    assert [one["text"] for one in made["embeddings"]] == ["Once upon", "a time"]
    assert [one["tokens"] for one in made["embeddings"]] == [
        len(sample_model.encode(text)) for text in ("Once upon", "a time")
    ]
    expected = sample_model.embed(["Once upon", "a time"], pooling="last")
    assert np.allclose([one["vector"] for one in made["embeddings"]], expected, atol=1e-6)


def test_a_table_shows_how_close_texts_are(tiny_bundle: Path) -> None:
    result = run("embed", tiny_bundle, "-", "--dimensions", 8, "--threads", 1, stdin=b"the cat\n\nthe cat\na dog\n")
    assert result.exit_code == 0, result.output
    assert "vectors of 8 values" in result.stdout
    assert result.stdout.count("1.0000") == 2


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["a", ""], None, ["empty"]),
        (["-"], b"\n", ["standard input has no text"]),
        (["-"], b"\xff", ["not UTF-8"]),
        (["a", "--dimensions", 0], None, ["dimensions is 0", "expected 1 to 32"]),
        (["the cat " * 100], None, ["the context of 64"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[object], stdin: bytes | None, words: list[str], tiny_bundle: Path
) -> None:
    assert_refused(run("embed", tiny_bundle, *arguments, "--threads", 1, stdin=stdin), 2, *words)


def test_no_text_and_another_pooling_are_refused(tiny_bundle: Path) -> None:
    assert run("embed", tiny_bundle).exit_code == 2
    assert "'mean', 'last'" in run("embed", tiny_bundle, "a", "--pooling", "max").stderr
