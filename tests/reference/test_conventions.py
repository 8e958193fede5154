"""Every convention of a module: graphs, chains and training against torch and transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaForCausalLM

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint, DraftVocabulary, NewModule, RecyclerConfig, attach
from recycle_onnx.checkpoint.recycler import EMBEDDING_FIRST
from recycle_onnx.errors import RecycleError
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from recycle_onnx.training import objective, targets
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.reference import plain
from tests.reference.models import torch_model

TOLERANCE = 1e-4
CALLS = (7, 1, 2, 5)
STATE_FIRST = EMBEDDING_FIRST[::-1]
DRAFT = 64
CONVENTIONS: dict[str, dict[str, Any]] = {
    "state first": {"concat": STATE_FIRST},
    "chain before the norm": {"recycle": "pre_norm"},
    "before the norm": {"tap": ("final_pre",)},
    "before the norm, chain too": {"tap": ("final_pre",), "recycle": "pre_norm", "concat": STATE_FIRST},
    "an inner layer": {"tap": ("layer.1",), "num_layers": 2},
    "three taps": {"tap": ("layer.2", "layer.1", "final_post")},
    "three taps, everything else": {"tap": ("final_pre", "layer.1", "layer.2"), "recycle": "pre_norm",
                                    "concat": STATE_FIRST, "draft": True, "num_layers": 2, "init": "random"},
    "draft vocabulary": {"draft": True},
    "a window": {"window": 5, "num_layers": 2},
    "queries and keys normalised": {"qk_norm": True},
}  # fmt: skip


def make(folder: Path, conventions: dict[str, Any]) -> Path:
    """A checkpoint of a base with three layers; no two norms are alike."""
    options = dict(conventions)
    tiny.write_base(folder / "base", tiny.tiny_config(num_layers=3), seed=4)
    if options.pop("draft", False):
        (folder / "text.txt").write_text(tiny.TEXT)
        options["draft_vocabulary"] = DraftVocabulary(DRAFT, folder / "text.txt")
    attach(folder / "base", folder / "checkpoint", NewModule(seed=4, **options))
    path, generator = folder / "checkpoint" / "recycler" / "model.safetensors", np.random.default_rng(4)
    norms = {name: 1 + 0.2 * generator.standard_normal(t.shape) for name, t in load_file(path).items() if t.ndim == 1}
    save_file(load_file(path) | {name: norm.astype(np.float32) for name, norm in norms.items()}, path)
    return folder / "checkpoint"


@pytest.fixture(scope="module", params=CONVENTIONS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("conventions"), CONVENTIONS[request.param])


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    export(checkpoint, checkpoint.parent / "bundle")
    return recycle_onnx.load(checkpoint.parent / "bundle")


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 300, count).tolist()


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    return float(np.abs(found - expected.numpy()).max()) <= TOLERANCE * float(expected.abs().max())


def read(half: Half, ids: list[int], hidden: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    states = np.empty((len(ids), half.spec.state_size), np.float32)
    return half.read(ids, hidden, states, keep=len(ids)).copy(), states


@torch.no_grad()
def tapped(folder: Path, ids: list[int], taps: tuple[str, ...]) -> torch.Tensor:
    """Hidden states [S, n·H] as transformers gives them; the one before the norm is what the norm is given."""
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before: list[torch.Tensor] = []
    base.model.norm.register_forward_pre_hook(lambda _, given: before.append(given[0]))
    found = base(torch.tensor([ids]), output_hidden_states=True).hidden_states
    known = {"final_post": found[-1], "final_pre": before[0], "layer.1": found[1], "layer.2": found[2]}
    return torch.cat([known[tap][0] for tap in taps], dim=-1)


def agreements(model: Model, reference: RecycleGPT, ids: list[int], states: torch.Tensor) -> list[bool]:
    """Whether logits and own states of every call equal torch's, given the true `states`."""
    half = model.decoder("verify").recycler
    assert half is not None
    cache = new_cache(reference.full.config, reference.recycler.config.num_layers, 1)
    found, start = [], 0
    for rows in CALLS:
        piece, given = ids[start + 1 : start + rows + 1], states[start : start + rows]
        with torch.no_grad():
            expected = reference.recycle(torch.tensor([piece]), given[None], cache)
        logits, own = read(half, piece, given.contiguous().numpy())
        found += [close(logits, expected.logits[0]), close(own, expected.hidden_states[0])]
        start += rows
    return found


def test_the_taps_are_transformers_own(checkpoint: Path, model: Model) -> None:
    ids = random_ids(sum(CALLS))
    expected = tapped(checkpoint, ids, torch_model(checkpoint).full.taps)
    half, start = model.decoder("full").full, 0
    for rows in CALLS:
        assert close(read(half, ids[start : start + rows])[1], expected[start : start + rows])
        start += rows


def test_the_module_equals_torch(checkpoint: Path, model: Model) -> None:
    ids, reference = random_ids(sum(CALLS) + 1), torch_model(checkpoint)
    assert all(agreements(model, reference, ids, tapped(checkpoint, ids, reference.full.taps)))


def test_verify_gives_the_text_of_full_and_alternate_that_of_plain_torch(checkpoint: Path, model: Model) -> None:
    reference = torch_model(checkpoint)
    for seed in range(6):
        prompt = random_ids(5, seed)
        full = model.generate(prompt, strategy="full", max_new_tokens=25).tokens
        assert full == plain.full(reference, prompt, 25, model.stop_ids)
        for chain in (1, 4):
            assert model.generate(prompt, strategy="verify", chain=chain, max_new_tokens=25).tokens == full
        assert model.generate(prompt, strategy="auto", max_new_tokens=25).tokens == full
        expected = plain.alternate(reference, prompt, 25, model.stop_ids)
        assert model.generate(prompt, strategy="alternate", max_new_tokens=25).tokens == expected


def test_chains_equal_plain_torch(checkpoint: Path, model: Model) -> None:
    reference = torch_model(checkpoint)
    for seed in range(6):
        ids = random_ids(5, seed)
        decoder = model.decoder("verify")
        first = int(decoder.prefill(ids)[-1].argmax())
        found = ModuleProposer(decoder, Sampling(), 5, 0.0).propose([first], len(ids) + 1, 5)
        assert found == plain.chain(reference, [*ids, first], 5)


@torch.no_grad()
def test_scores_are_torchs(checkpoint: Path, model: Model) -> None:
    ids, reference = random_ids(30), torch_model(checkpoint)
    full = reference.full(torch.tensor([ids]))
    module = reference.recycle(torch.tensor([ids[1:]]), full.hidden_states[:, :-1])
    best = full.logits[0].argmax(-1)
    found = score(model, ids)
    assert found.best.tolist() == best[:-1].tolist()
    assert found.accepted is not None
    assert found.accepted.tolist() == (reference.chosen(module)[0] == best[1:])[:-1].tolist()


def test_another_order_tap_or_state_is_noticed(checkpoint: Path, model: Model) -> None:
    ids, reference = random_ids(sum(CALLS) + 1), torch_model(checkpoint)
    config = reference.recycler.config
    states = tapped(checkpoint, ids, config.tap)
    reference.recycler.config = replace(config, concat=config.concat[::-1])
    assert not any(agreements(model, reference, ids, states))
    other = "post_norm" if config.recycle == "pre_norm" else "pre_norm"
    reference.recycler.config = replace(config, recycle=other)
    assert agreements(model, reference, ids, states) == [True, False] * len(CALLS)
    reference.recycler.config = config
    for tap in {"layer.1", "layer.2", "final_pre", "final_post"} - {config.tap[0]}:
        wrong = tapped(checkpoint, ids, (tap, *config.tap[1:]))
        right = model.decoder("full").full
        assert not close(read(right, ids)[1], wrong)


def test_training_keeps_the_conventions_and_the_export_checks_them(tmp_path: Path) -> None:
    folder = make(tmp_path, CONVENTIONS["three taps, everything else"])
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join([tiny.TEXT] * 40))
    with Checkpoint.open(folder) as source:
        before, ids = source.recycler, source.draft_ids
    options = TrainingOptions(steps=12, batch_size=4, sequence_length=24, learning_rate=5e-3, depth=2)
    seen: list[float] = []
    train(folder, [text], options, report=lambda now: seen.append(now.recycle))
    assert seen[-1] < seen[0] - 0.1
    with Checkpoint.open(folder) as source:
        assert source.recycler is not None
        assert source.draft_ids == ids
        assert replace(source.recycler, training={}, trained_depth=0) == before
    for name, draft in (("own", None), ("another", DraftVocabulary(32, text))):
        checked = export(folder, tmp_path / name, ExportOptions(draft_vocabulary=draft)).self_check
        assert checked.against_reference is not None
        assert checked.against_reference < TOLERANCE
    path = folder / "recycler" / "config.json"
    right = read_json(path)
    for wrong in ({"concat": list(EMBEDDING_FIRST)}, {"tap": ["final_pre", "layer.2", "layer.1"]}):
        write_json(path, {**right, **wrong})
        with pytest.raises(RecycleError, match="torch and the graphs differ"):
            export(folder, tmp_path / "wrong")


def drafting_model() -> tuple[RecycleGPT, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    draft = torch.arange(0, 300, 7)
    model = RecycleGPT(tiny.tiny_config(), RecyclerConfig(1), draft.tolist())
    torch.nn.init.normal_(model.full.model.embed_tokens.weight)
    return model, draft, torch.randint(0, 300, (3, 12))


def test_the_target_is_the_bases_distribution_over_the_draft_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LIKELIEST", 300)  # of all tokens, where otherwise the tail is left out
    model, draft, ids = drafting_model()
    full = model.full(ids)
    step = model.recycle(ids[:, 1:], full.hidden_states[:, :-1], every_token=True)
    target = full.logits[:, 1:].softmax(-1)[..., draft]
    target = target / target.sum(-1, keepdim=True)
    predicted = step.logits[..., draft].log_softmax(-1)
    losses = objective.frozen_base(model, ids, targets.base_targets(model.full, ids))
    expected = -(target * predicted).sum(-1).mean()
    torch.testing.assert_close(losses.recycle, expected, rtol=1e-3, atol=1e-3)  # float16 on disk
    best = full.logits[:, 1:].argmax(-1)
    accepted = (draft[step.logits[..., draft].argmax(-1)] == best).float().mean()
    torch.testing.assert_close(losses.acceptance[0], accepted)
    assert not torch.isin(best, draft).all()  # some are outside, and count as rejections


def test_in_joint_training_tokens_outside_are_left_out() -> None:
    model, draft, ids = drafting_model()
    full = model.full(ids[:, :-1])
    step = model.recycle(ids[:, 1:-1], full.hidden_states[:, :-1], every_token=True)
    nats = [
        -step.logits[row, place, draft].log_softmax(-1)[int(token) // 7]
        for row in range(3)
        for place, token in enumerate(ids[row, 2:])
        if int(token) % 7 == 0
    ]
    assert 0 < len(nats) < 30
    torch.testing.assert_close(objective.joint(model, ids).recycle, torch.stack(nats).mean())
    outside = ids // 7 * 7 + 1
    losses = objective.joint(model, outside)
    assert losses.recycle.item() == 0
    assert bool(torch.isfinite(losses.next_token))
