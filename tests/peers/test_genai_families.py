"""onnxruntime-genai gives the greedy text of `full` for a base of every family."""

from __future__ import annotations

from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.export import export
from tests.peers.test_genai import genai
from tests.reference.families import CASES, write

pytestmark = pytest.mark.peers
PROMPTS = ("the cat sat on the mat, the dog sat", "a hen ran to the pen")


@pytest.mark.parametrize("name", CASES)
def test_greedy_text_is_that_of_full(name: str, tmp_path: Path) -> None:
    export(write(name, tmp_path / "model"), tmp_path / "bundle")
    answers = genai(tmp_path / "bundle", [{"prompt": prompt, "new_tokens": 20} for prompt in PROMPTS])
    model = recycle_onnx.load(tmp_path / "bundle")
    model.stop_ids = frozenset()
    for answer, prompt in zip(answers, PROMPTS, strict=True):
        expected = model.generate(prompt, max_new_tokens=20, strategy="full").tokens
        assert answer["tokens"]
        assert answer["tokens"] == expected[: len(answer["tokens"])]
