"""Every family with operators of ONNX only, against transformers and torch; batches with padding too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

import recycle_onnx
from recycle_onnx.bundle import Manifest, graph_file
from recycle_onnx.export import ExportOptions, export
from tests.reference.families import CASES, reference, write_with_module
from tests.reference.models import torch_model
from tests.reference.test_families import IDS, LENGTH, TOLERANCE, difference, expected, read

SPLITS = [27, 1, 2, 5, 1, 1, 1, 2]
LENGTHS = (12, 7, 10)
"""Of three texts in a batch, which end together."""
CALLS = (8, 1, 3)


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_module(name, tmp_path_factory.mktemp("family") / "model")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    export(checkpoint, checkpoint.parent / "bundle", ExportOptions(flavour="standard"))
    return checkpoint.parent / "bundle"


def test_the_graph_gives_what_transformers_gives(name: str, bundle: Path) -> None:
    full = recycle_onnx.load(bundle).decoder("full").full
    for found, wanted in zip(read(full, IDS, None, SPLITS), expected(name), strict=True):
        assert difference(found, wanted) < TOLERANCE


def test_the_module_in_the_graph_is_the_module_in_torch(name: str, checkpoint: Path, bundle: Path) -> None:
    hidden = expected(name)[1][:-1]
    with torch.no_grad():
        wanted = torch_model(checkpoint).recycle(torch.tensor([IDS[1:]]), torch.from_numpy(hidden)[None])
    module = recycle_onnx.load(bundle).decoder("verify").recycler
    assert module is not None
    for found, torchs in zip(read(module, IDS[1:], hidden, [SPLITS[0] - 1, *SPLITS[1:]]), wanted, strict=True):
        assert difference(found, torchs[0].numpy()) < TOLERANCE


def padded(bundle: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits [B, L, V] in several calls, in buffers with room that hold something else."""
    spec = Manifest.read(bundle / "recycle.json").graphs["full"]
    session = ort.InferenceSession(bundle / graph_file("full"))
    shape = (len(ids), spec.num_kv_heads, 16, spec.head_dim)
    past = {name: np.full(shape, 77, np.float32) for name in spec.past_names()}
    rows, end = [], 0
    for count in CALLS:
        start, end = end, end + count
        seen = np.zeros((len(ids), 20), np.int64)
        seen[:, :end] = mask[:, :end]
        feed = {"input_ids": ids[:, start:end], "attention_mask": seen, **past}
        logits, _, *present = session.run(None, feed)
        past = dict(zip(spec.past_names(), present, strict=True))
        rows.append(logits)
    return np.concatenate(rows, axis=1)


def test_a_batch_with_padding_gives_what_transformers_gives(name: str, bundle: Path) -> None:
    ids = np.random.default_rng(5).integers(1, 300, (len(LENGTHS), max(LENGTHS)))
    mask = np.array([[0] * (max(LENGTHS) - length) + [1] * length for length in LENGTHS])
    positions = torch.from_numpy((mask.cumsum(1) - 1).clip(0))
    # OPT derives positions from the mask, and takes no others
    own = {} if name == "opt" else {"position_ids": positions}
    with torch.no_grad():
        output = reference(name)(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False, **own)
    text, wanted = mask.astype(bool), output.logits.numpy()
    found = padded(bundle, ids, mask)
    assert np.isfinite(found).all()
    assert difference(found[text], wanted[text]) < TOLERANCE
    unmasked = padded(bundle, ids, np.ones_like(mask))
    assert difference(unmasked[text], wanted[text]) > TOLERANCE


@pytest.mark.parametrize("name", ["mistral", "gemma3"], scope="module")
@pytest.mark.parametrize("step", [-1, 1])
def test_a_window_that_is_off_by_one_fails_the_comparison(
    name: str, step: int, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("recycler"))
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "sliding_window": config["sliding_window"] + step}))
    export(tmp_path / "model", tmp_path / "bundle", ExportOptions(flavour="standard"))
    full = recycle_onnx.load(tmp_path / "bundle").decoder("full").full
    assert difference(read(full, IDS, None, [LENGTH])[0], expected(name)[0]) > TOLERANCE
