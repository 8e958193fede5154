"""Where config and files contradict each other about tied embeddings, transformers is who we agree with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoint.test_tied_tables import Tensors, head_alone, logits, twice, two, write


@pytest.mark.parametrize("change", [head_alone, twice, two])
def test_the_tables_are_those_of_transformers(change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", change, tied=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([[1, 2, 3, 4]])).logits[0, -1:].numpy()
    np.testing.assert_allclose(logits(folder, tmp_path / "bundle"), expected, atol=1e-4)
