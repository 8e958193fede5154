"""What the base says of a text is computed once, lies on disk, and is what the base says."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recycle_onnx.checkpoint import RecyclerConfig
from recycle_onnx.errors import RecycleError
from recycle_onnx.progress import silent
from recycle_onnx.training import target_cache
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.options import Progress, TrainingOptions
from recycle_onnx.training.reader import spread
from recycle_onnx.training.target_cache import CachedTargets, bytes_a_token
from recycle_onnx.training.targets import Targets, base_targets
from recycle_onnx.training.trainer import train
from tests.helpers import tiny

SIZE = 10**8
OPTIONS = TrainingOptions(steps=20, batch_size=4, sequence_length=32, learning_rate=5e-3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(target_cache, "SHARD", 4)
    return tmp_path / "cache" / "targets"


@pytest.fixture
def model() -> RecycleGPT:
    torch.manual_seed(0)
    return RecycleGPT(tiny.tiny_config(), RecyclerConfig(1, tap=("layer.1", "final_post")))


def windows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (count, 12)).astype(np.uint32)


def equal(one: Targets, other: Targets) -> bool:
    return all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


def test_targets_are_what_the_base_says(model: RecycleGPT) -> None:
    ids = torch.from_numpy(windows(3).astype(np.int64))
    targets = base_targets(model.full, ids)
    full = model.full(ids)
    logs = full.logits.log_softmax(-1)
    torch.testing.assert_close(targets.states, full.hidden_states)
    assert torch.equal(targets.ids[..., 0].long(), full.logits.argmax(-1))
    torch.testing.assert_close(
        targets.log_probabilities.float(), logs.gather(-1, targets.ids.long()), atol=0.01, rtol=0.002
    )
    nats = -logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(targets.nats[:, :-1], nats)
    torch.testing.assert_close(targets.log_total, full.logits.logsumexp(-1))


def test_a_draft_vocabulary_takes_its_own_tokens_of_them(model: RecycleGPT) -> None:
    targets = base_targets(model.full, torch.from_numpy(windows(2).astype(np.int64)))
    places = torch.full((300,), -100)
    places[100:200] = torch.arange(100)
    ids, probabilities = targets.of_draft(places)
    known = (targets.ids >= 100) & (targets.ids < 200)
    assert torch.equal(ids[known] + 100, targets.ids[known].long())
    assert not probabilities[~known].any()
    assert torch.equal(probabilities[known], targets.log_probabilities.float().exp()[known])


def test_they_are_read_from_disk_as_they_were_computed(model: RecycleGPT, cache: Path) -> None:
    parts = [windows(6), windows(3, seed=1)]
    cached = CachedTargets(model.full, "base", parts, SIZE)
    assert cached.missing == 9
    cached.fill(silent)
    assert cached.missing == 0
    assert len(list(cache.iterdir())) == 3  # 4 and 2 windows of the first text, 3 of the second
    fresh = CachedTargets(model.full, "base", parts, 0)
    for numbers in ([0], [8, 3, 5]):
        assert equal(cached.read(numbers), fresh.read(numbers))
    assert fresh.uncached == 9


def test_text_that_grows_keeps_what_was_read(model: RecycleGPT) -> None:
    CachedTargets(model.full, "base", [windows(8)], SIZE).fill(silent)
    assert CachedTargets(model.full, "base", [np.concatenate([windows(8), windows(4, seed=1)])], SIZE).missing == 4


def test_a_short_training_uses_what_was_read_for_a_long_one(model: RecycleGPT) -> None:
    parts = (windows(40), windows(20, seed=1))
    CachedTargets(model.full, "base", parts, SIZE).fill(silent)
    some = spread(parts, 18)
    assert [len(part) for part in some] == [12, 8]  # of 4 windows each: 12 and 6 were asked for
    assert {tuple(row) for row in some[0]} <= {tuple(row) for row in parts[0]}
    assert CachedTargets(model.full, "base", some, SIZE).missing == 0
    assert spread(parts, 60) is parts
    assert [len(part) for part in spread((windows(40), windows(0)), 8)] == [8, 0]  # a part without a window


@pytest.mark.parametrize("change", ["base", "tap", "text", "type"])
def test_other_bases_taps_and_texts_have_files_of_their_own(change: str, model: RecycleGPT) -> None:
    CachedTargets(model.full, "base", [windows(4)], SIZE).fill(silent)
    base, text = "base", windows(4)
    if change == "base":
        base = "another"
    elif change == "tap":
        model.full.taps = ("final_post",)
    elif change == "text":
        text = windows(4, seed=1)
    else:
        model.full.bfloat16()
    assert CachedTargets(model.full, base, [text], SIZE).missing == 4


def test_a_file_that_is_cut_off_is_made_again(model: RecycleGPT, cache: Path) -> None:
    cached = CachedTargets(model.full, "base", [windows(4)], SIZE)
    cached.fill(silent)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert cached.missing == 4
    cached.fill(silent)
    assert file.read_bytes() == whole


def test_what_was_filled_survives_an_interruption(model: RecycleGPT) -> None:
    def interrupt(read: int, total: int, what: str) -> None:
        if read > 12 * 4:
            raise KeyboardInterrupt

    cached = CachedTargets(model.full, "base", [windows(12)], SIZE)
    with pytest.raises(KeyboardInterrupt):
        cached.fill(interrupt)
    assert cached.missing == 8


def test_the_cache_keeps_within_its_bound_and_lets_old_text_go(model: RecycleGPT, cache: Path) -> None:
    room = 9 * 12 * bytes_a_token(model.full)  # two files of four windows, and a little
    for seed in range(3):
        CachedTargets(model.full, "base", [windows(8, seed)], room).fill(silent)
    assert CachedTargets(model.full, "base", [windows(8, seed=2)], room).missing == 0
    assert CachedTargets(model.full, "base", [windows(8, seed=0)], room).missing == 8
    assert CachedTargets(model.full, "base", [windows(20, seed=4)], room).uncached == 12
    assert sum(file.stat().st_size for file in cache.iterdir()) < 1.1 * room + 4 * 2000  # and the files' headers


def test_a_full_disk_is_said_and_keeps_what_was_filled(
    model: RecycleGPT, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, written = target_cache.write_tensors, []

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save(path, tensors)

    monkeypatch.setattr(target_cache, "write_tensors", full)
    with pytest.raises(RecycleError, match="No space left on device"):
        CachedTargets(model.full, "base", [windows(12)], SIZE).fill(silent)
    assert len([file for file in cache.iterdir() if file.suffix == ".safetensors"]) == 1


def test_training_with_the_cache_is_training_without_it(tmp_path: Path) -> None:
    """Held-out losses differ by less than 2 percent: the cache stores the base's states as they are computed."""
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(["The cat sat on the mat. A hen ran to the pen. " * 6] * 30))
    results = []
    for name, size in (("with", 1.0), ("without", 0.0)):
        folder = tiny.write_checkpoint(tmp_path / name, tiny.tiny_config(), seed=2)
        seen: list[Progress] = []
        results.append(train(folder, [text], replace(OPTIONS, cache_gb=size), report=seen.append))
        assert len(seen) == OPTIONS.steps
    assert results[0].held_out_recycle == pytest.approx(results[1].held_out_recycle, rel=0.02)
