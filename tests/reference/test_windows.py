"""Families with windows against transformers, on texts of which their layers have dropped most rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import recycle_onnx
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.runtime.decoding import window_rows
from tests.helpers.windows import RUN, drop_soon
from tests.reference.families import CASES, reference, write_with_module

FAMILIES = ["mistral", "qwen2", "smollm3", "phi3", "olmo3", "exaone4", "starcoder2", "gemma2", "gemma3"]
TOLERANCE = 1e-4


def test_every_family_with_a_window_is_among_them() -> None:
    for name, (_, values) in CASES.items():
        assert (values.get("sliding_window") is not None) == (name in FAMILIES), name


@torch.no_grad()
@pytest.mark.parametrize("flavour", ["ort", "standard"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_behind_dropped_rows_are_those_of_transformers(
    name: str, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_soon(monkeypatch)
    monkeypatch.setattr(window_rows, "ROWS_BACK", 4)
    length = CASES[name][1].get("original_max_position_embeddings", 96) if name == "phi3" else 96
    ids = np.random.default_rng(4).integers(1, 300, length).tolist()
    wanted = reference(name)(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    export(write_with_module(name, tmp_path / "model"), tmp_path / "bundle", ExportOptions(flavour))
    with recycle_onnx.load(tmp_path / "bundle", threads=1) as model:
        model.prefill_chunk = RUN
        decoder = model.decoder("verify")
        assert np.allclose(decoder.prefill(ids[:-6])[-1], wanted[-7], atol=TOLERANCE)
        decoder.start_recycling(ids[-6])
        for start, size in ((length - 6, 1), (length - 5, 2), (length - 3, 3)):
            logits = decoder.full_step(ids[start : start + size], keep=size)
            assert np.allclose(logits, wanted[start : start + size], atol=TOLERANCE)
        assert decoder.full.cache.dropped > 0
