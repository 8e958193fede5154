"""Embeddings against transformers: its last hidden states, pooled and normalised as sentence-transformers does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

import recycle_onnx
from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from tests.helpers import tiny
from tests.helpers.pooling import LAST, write_pooling
from tests.helpers.prompts import LONG_STORY
from tests.reference.families import reference, write
from tests.reference.models import shared_folder

TOLERANCE = 1e-4
TEXTS = ["the cat sat on the mat", "a dog", "the hen ran to the pen, and the dog sat on the log"]
REAL = "RECYCLE_ONNX_REAL_BASE"
"""A variable that names the folder of a real base, such as SmolLM2-135M-Instruct, to compare that too."""


@torch.no_grad()
def expected(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    vectors = []
    for text in texts:
        states = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(normalize(states.mean(0) if pooling == "mean" else states[-1], dim=0))
    return torch.stack(vectors).numpy()


def assert_equal(checkpoint: Path, base: Path, texts: list[str], bundle: Path, pooling: str | None = None) -> None:
    export(checkpoint, bundle)
    with recycle_onnx.load(bundle, threads=1) as model:
        made = model.embed(texts, pooling=pooling)
    difference = np.abs(made - expected(base, texts, pooling or "last")).max()
    assert difference <= TOLERANCE, f"{difference:.2e}"


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "llama"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_any_bundle_gives_the_vectors_of_its_base(name: str, pooling: str, tmp_path: Path) -> None:
    write(name, tmp_path / "base")
    assert_equal(tmp_path / "base", tmp_path / "base", TEXTS, tmp_path / "bundle", pooling)


def test_an_embedding_base_pools_as_its_files_say(tmp_path: Path) -> None:
    """Such a folder holds the trunk alone, under names without a prefix, and its tokenizer ends every text."""
    reference("qwen3").model.save_pretrained(tmp_path / "base")
    tiny.write_text_files(tmp_path / "base")
    tokenizer = tiny.tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {tiny.END}", special_tokens=[(tiny.END, 0)])
    tokenizer.save(str(tmp_path / "base" / "tokenizer.json"))
    assert Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json")).encode("a").ids[-1] == 0
    write_pooling(tmp_path / "base", LAST)
    assert_equal(tmp_path / "base", tmp_path / "base", TEXTS, tmp_path / "bundle")
    attach(tmp_path / "base", tmp_path / "checkpoint")
    assert_equal(tmp_path / "checkpoint", tmp_path / "base", TEXTS, tmp_path / "with-module")


def test_a_trained_base_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    base = shared_folder("models/stories260K")
    assert_equal(base, base, ["Once upon a time", LONG_STORY[:800]], tmp_path / "bundle", "mean")


@pytest.mark.skipif(REAL not in os.environ, reason=f"{REAL} names no folder")
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_real_base_gives_the_vectors_of_transformers(pooling: str, tmp_path: Path) -> None:
    base = Path(os.environ[REAL])
    assert_equal(base, base, ["What is the capital of France?", "Paris", LONG_STORY], tmp_path / "bundle", pooling)
