"""Heads that others publish, read and run: against their reference implementations, and each convention in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.heads import attach_head, read_head
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import RecycleGPT
from tests.helpers.command import assert_refused, run
from tests.helpers.heads import write_base, write_medusa
from tests.reference import heads
from tests.reference.base_and_head import BaseAndHead
from tests.reference.models import torch_model

TOLERANCE = 1e-4
IDS = np.random.default_rng(5).integers(1, 300, 24).tolist()
SPLITS = (9, 1, 2, 5, 6)


class Attached:
    """A checkpoint with a head, its reference, and its torch twin."""

    def __init__(self, name: str, folder: Path) -> None:
        base, head, self.reference_head = heads.write(heads.CASES[name], folder)
        self.checkpoint, self.name = folder / "checkpoint", name
        with Checkpoint.open(base, base_only=True) as opened:
            attach_head(opened, self.checkpoint, read_head(head, opened.base_weights), keep=head)
        self.reference = BaseAndHead(base, self.reference_head)
        self.model = torch_model(self.checkpoint)


@pytest.fixture(scope="module", params=heads.CASES)
def attached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attached:
    return Attached(request.param, tmp_path_factory.mktemp("head"))


def close(actual: np.ndarray | torch.Tensor, expected: torch.Tensor) -> bool:
    difference = np.abs(np.asarray(actual) - expected.numpy()).max()
    return bool(difference <= TOLERANCE * float(expected.abs().max()))


@torch.no_grad()
def chain(model: RecycleGPT, tokens: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy tokens of the torch model's chain after `tokens`, with a cache, and their logits."""
    cache = new_cache(model.recycler.config.layers_of(model.full.config), len(model.recycler.layers), 1)
    output = model.recycle(torch.tensor([tokens[1:]]), model.full(torch.tensor([tokens[:-1]])).hidden_states, cache)
    known, rows = list(tokens), []
    count = min(count, model.recycler.config.places) if model.recycler.config.join is None else count
    for place in range(count):
        rows.append(output.logits[0, -1])
        known.append(int(model.chosen(output)[0, -1]))
        if place + 1 < count:
            ids, states = torch.tensor([[known[-1]]]), output.hidden_states[:, -1:]
            output = model.recycle(ids, states, cache, place=place + 1)
    return known[len(tokens) :], rows


def equals_reference(model: RecycleGPT, reference: BaseAndHead) -> bool:
    """Whether torch has the reference's logits over a text, and its chains."""
    with torch.no_grad():
        states = model.full(torch.tensor([IDS[:-1]])).hidden_states
        logits = model.recycle(torch.tensor([IDS[1:]]), states).logits
    equal = close(logits, reference.step(IDS[1:], reference.states(IDS[:-1]))[0])
    expected, rows = reference.chain(IDS, 5)
    tokens, own = chain(model, IDS, 5)
    return equal and tokens == expected and all(map(close, own, rows))


def test_torch_equals_the_reference(attached: Attached) -> None:
    assert equals_reference(attached.model, attached.reference)


@pytest.mark.parametrize("flavour", ["ort", "standard"])
def test_graphs_and_runtime_equal_the_reference(attached: Attached, flavour: str, tmp_path: Path) -> None:
    export(attached.checkpoint, tmp_path / "bundle", ExportOptions(flavour=flavour))
    model = recycle_onnx.load(tmp_path / "bundle", threads=1)
    decoder, start = model.decoder("verify"), 0
    full, module = decoder.full, decoder.recycler
    assert module is not None
    states = np.empty((len(IDS) - 1, full.spec.state_size), np.float32)
    full.read(IDS[:-1], None, states)
    wanted = attached.reference.step(IDS[1:], attached.reference.states(IDS[:-1]))[0][0]
    for rows in SPLITS:
        piece = slice(start, start + rows)
        own = np.empty((rows, module.spec.state_size), np.float32)
        logits = module.read(IDS[1:][piece], np.ascontiguousarray(states[piece]), own, keep=rows)
        assert close(logits, wanted[piece])
        start += rows
    for length in (3, 11, 20):
        for count in range(1, 6):
            decoder = model.decoder("verify")
            first = int(decoder.prefill(IDS[:length])[-1].argmax())
            found = ModuleProposer(decoder, Sampling(), count, 0.0).propose([first], length + 1, count)
            assert found == attached.reference.chain([*IDS[:length], first], count)[0]
    text = model.generate(IDS[:5], strategy="full", max_new_tokens=20).tokens
    assert model.generate(IDS[:5], strategy="verify", chain=3, max_new_tokens=20).tokens == text


FLIPS = {
    "concat": lambda config: replace(config, concat=config.concat[::-1]),
    "recycle": lambda config: replace(config, recycle="pre_norm" if config.recycle == "post_norm" else "post_norm"),
    "residual": lambda config: replace(
        config, residual="hidden_state" if config.residual != "hidden_state" else "normed_hidden_state"
    ),
    "tap": lambda config: replace(
        config, tap=("final_pre",) if len(config.tap) == 1 else (*config.tap[1:], config.tap[0])
    ),
    "norms": lambda config: replace(config, norms_before_projection=config.norms_before_projection[1:]),
    "norms before fusion": lambda config: replace(config, fusion=config.fusion and "linear"),
    "bias": lambda config: replace(config, projection_bias=False),
    "final norm": lambda config: replace(config, final_norm=False),
    "window": lambda config: replace(config, window=None if config.window else 5),
    "blocks": lambda config: replace(config, blocks=max(0, config.blocks - 1)),
}
OF_LAYERS = ("concat", "recycle", "window")
"""Conventions that say nothing of a head without layers."""


def test_each_convention_flipped_fails(attached: Attached) -> None:
    model, config = attached.model, attached.model.recycler.config
    with Checkpoint.open(attached.checkpoint) as opened:
        assert opened.recycler is not None
        assert opened.recycler_weights is not None
        for name, flip in FLIPS.items():
            changed = flip(config)
            # what has no part in this head, or makes no difference to it
            idle = (name == "residual" and config.join != "attention") or (name == "recycle" and not config.final_norm)
            idle = idle or (name in OF_LAYERS and config.join is None)
            if changed == config or idle:
                continue
            twin = RecycleGPT(opened.base, changed, opened.draft_ids).eval()
            twin.full = model.full if changed.tap == config.tap else retapped(model, changed.tap)
            own = model.recycler.state_dict()
            twin.recycler.load_state_dict({name: own[name] for name in twin.recycler.state_dict()})
            assert not equals_reference(twin, attached.reference), name


def retapped(model: RecycleGPT, taps: tuple[str, ...]) -> torch.nn.Module:
    """The base again, whose hidden states are taken elsewhere."""
    full = type(model.full)(model.full.config, taps).eval()
    full.load_state_dict(model.full.state_dict())
    return full


def test_medusas_blocks_are_trained_as_far_as_there_are_places(tmp_path: Path) -> None:
    base, folder = write_base(tmp_path / "base"), write_medusa(tmp_path / "head")
    (tmp_path / "a.txt").write_text("The cat sat on the mat and the dog sat on the log. A hen ran to the pen. " * 40)
    assert run("attach", base, tmp_path / "checkpoint", "--head", folder, "--no-check").exit_code == 0
    weights, small = tmp_path / "checkpoint" / "recycler" / "model.safetensors", ("--sequence-length", 32, "--steps", 3)
    before = load_file(weights)
    options = ("train", tmp_path / "checkpoint", "-d", tmp_path / "a.txt", "--batch-size", 4, *small)
    assert_refused(run(*options, "--depth", 4), 2, "--depth 4", "3 places")
    result = run(*options, "--depth", 2)
    assert result.exit_code == 0, result.output
    after = load_file(weights)
    changed = {name.rpartition(".projection")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"places.0", "places.1"}
    bundle = tmp_path / "bundle"
    assert run("export", tmp_path / "checkpoint", bundle).exit_code == 0  # compares with torch's reference


@pytest.mark.parametrize("places", [1, 2])
def test_medusa_without_biases_is_trained_with_no_option_but_the_text(places: int, tmp_path: Path) -> None:
    """No vectors are left for AdamW, and the usual depth is longer than there are places."""
    base, folder = write_base(tmp_path / "base"), write_medusa(tmp_path / "head")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if int(name.split(".")[0]) < places and "bias" not in name}
    save_file(kept, folder / "model.safetensors")
    (tmp_path / "a.txt").write_text("The cat sat on the mat and the dog sat on the log. A hen ran to the pen. " * 40)
    assert run("attach", base, tmp_path / "checkpoint", "--head", folder, "--no-check").exit_code == 0
    weights = tmp_path / "checkpoint" / "recycler" / "model.safetensors"
    before = load_file(weights)
    small = ("--batch-size", 4, "--sequence-length", 32, "--steps", 2)
    result = run("train", tmp_path / "checkpoint", "-d", tmp_path / "a.txt", *small)
    assert result.exit_code == 0, result.output
    after = load_file(weights)
    assert all(np.array_equal(before[name], after[name]) == ("lm_head" in name) for name in before)
