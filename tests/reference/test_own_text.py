"""The base writes the text that a module is trained on: as it would, once, both sides of a conversation."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, write_json
from recycle_onnx.progress import silent
from recycle_onnx.script import OPENING, Opening, Script, Turn
from recycle_onnx.training import own_text, writer
from recycle_onnx.training.caches import cache_bytes, new_cache
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.own_text import OwnText
from recycle_onnx.training.storage import load_model
from recycle_onnx.training.target_cache import CachedTargets, TargetFiles
from recycle_onnx.training.targets import base_targets
from recycle_onnx.training.trainer import train
from recycle_onnx.training.writer import write_windows
from tests.helpers import tiny
from tests.helpers.command import run
from tests.helpers.patience import PATIENCE
from tests.reference import plain

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "own-text"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), seed=2)


@pytest.fixture
def chat(checkpoint: Path) -> Path:
    path = checkpoint / "tokenizer_config.json"
    write_json(path, {**(read_json(path) if path.exists() else {}), "chat_template": TEMPLATE})
    return checkpoint


def full_model(folder: Path) -> FullModel:
    with Checkpoint.open(folder) as source:
        return load_model(source).full


def test_at_temperature_zero_the_base_writes_its_greedy_text(checkpoint: Path) -> None:
    with Checkpoint.open(checkpoint) as source:
        model = load_model(source)
    opening = [5, 17, 200, 3, 9]
    nobody = (Turn(frozenset(), (), (0.0,)),)
    rows = write_windows(model.full, [Opening(tuple(opening), 0), Opening((5, 17), 0)], nobody, 20, 0).windows
    assert rows[0].tolist() == opening + plain.full(model, opening, 20 - len(opening), frozenset())
    assert rows[1].tolist() == [5, 17, *plain.full(model, [5, 17], 18, frozenset())]


def test_a_chat_model_writes_both_sides(chat: Path) -> None:
    script = Script.of(chat, 0.7)
    question, answer = script.turns
    tokenizer = script.tokenizer
    assert tokenizer.decode(list(script.starts[0].ids), skip_special_tokens=False) == "[user]"
    assert (question.ends, answer.ends) == (frozenset({0}), frozenset({0}))
    assert tokenizer.decode(list(question.then)) == "[assistant]"
    assert tokenizer.decode(list(answer.then)) == "[user]"
    assert answer.temperatures[0] == 0.7 < question.temperatures[0]


def test_half_of_a_chat_models_texts_begin_with_a_question_that_is_begun_for_it(chat: Path) -> None:
    script = Script.of(chat, 0.7)
    texts = [script.tokenizer.decode(list(opening.ids), skip_special_tokens=False) for opening in script.starts]
    half = len(texts) // 2
    assert set(texts[:half]) == {"[user]"}
    assert len(set(texts[half:])) == half
    assert "[user]Complete the following code:\n\ndef" in texts
    assert {opening.turn for opening in script.starts} == {0}
    rows = OwnText(full_model(chat), "base", script, [], half + 2, 32, 0).windows(silent)
    for row, opening in zip(rows[half:].tolist(), script.starts[half:], strict=False):
        assert tuple(row[: len(opening.ids)]) == opening.ids[:32]


def test_ctrl_c_keeps_the_files_that_are_written(checkpoint: Path, cache: Path) -> None:
    text = OwnText(full_model(checkpoint), "base", Script.of(checkpoint, 0.8), [], 4000, 64, 0, at_once=4)

    def interrupt(written: int, total: int, unit: str) -> None:
        if written:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        text.windows(interrupt)
    assert 1 <= len(list(cache.glob("*.u32"))) < 100
    assert {path.stat().st_size for path in cache.iterdir()} == {4 * 64 * 4}
    assert torch.get_num_threads() == threads


def test_a_turn_that_ends_is_followed_by_the_other_speakers(checkpoint: Path) -> None:
    """Wherever the base ends a turn, the beginning of the next one stands there, and speakers take turns."""
    ends = frozenset(range(100))  # of 300 tokens, so that turns are short
    turns = (Turn(ends, (250, 251), (1.0,)), Turn(ends, (260,), (1.0,)))
    for row in write_windows(full_model(checkpoint), [Opening((260,), 0)] * 8, turns, 40, 3).windows.tolist():
        speaker, place, changes = 0, 1, 0
        while place < len(row):
            ended = row[place] in ends
            place += 1
            if ended:
                then = list(turns[speaker].then)
                assert row[place : place + len(then)] == then[: len(row) - place]
                speaker, place, changes = 1 - speaker, place + len(then), changes + 1
        assert changes > 1


def test_a_base_without_a_template_goes_on_after_the_end_of_a_text(checkpoint: Path) -> None:
    script = Script.of(checkpoint, 0.9)
    (turn,) = script.turns
    assert script.starts[0].ids == turn.then == (0,)
    assert turn.ends == frozenset({0})


def test_text_is_written_once_and_grows(checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, script = full_model(checkpoint), Script.of(checkpoint, 0.8)

    def write(rows: int, seed: int = 0) -> np.ndarray:
        return OwnText(model, "base", script, [], rows, 16, seed, at_once=4).windows(silent)

    first = write(8)
    monkeypatch.setattr(own_text, "write_windows", None)  # what was written is not written again
    np.testing.assert_array_equal(write(8), first)
    np.testing.assert_array_equal(write(4), first[:4])
    monkeypatch.undo()
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(cache.parent))
    np.testing.assert_array_equal(write(12)[:8], first)
    assert not np.array_equal(write(8, seed=1), first)
    assert len({row.tobytes() for row in first}) > 4  # every file has random numbers of its own


def test_what_the_base_writes_it_need_not_read(checkpoint: Path) -> None:
    """On the way it says what it would be asked; kept like that, the same as when it reads the text."""
    model, script = full_model(checkpoint), Script.of(checkpoint, 0.8)
    limit = 10**9
    files = TargetFiles(model, "base", limit)
    windows = OwnText(model, "base", script, [], 128, 16, 0, files, at_once=64).windows(silent)
    cached = CachedTargets(model, "base", [windows], limit)
    assert cached.missing == 0
    numbers = [0, 63, 64, 127]
    kept, read = cached.read(numbers), base_targets(model, torch.from_numpy(windows[numbers].astype(np.int64)))
    for name, tensor in read.tensors().items():
        torch.testing.assert_close(kept.tensors()[name], tensor, atol=2e-3, rtol=2e-3, msg=name)
    assert CachedTargets(model, "base", [windows[1:]], limit).missing == 127


@pytest.mark.parametrize("length", [3, 256, 257])
def test_the_bytes_of_a_cache_are_those_that_its_tensors_take(length: int) -> None:
    config = tiny.tiny_config()
    caches = new_cache(config, config.num_layers, 5, torch.bfloat16)
    rows = torch.zeros(5, config.num_kv_heads, length, config.head_dim, dtype=torch.bfloat16)
    for cache in caches:
        cache.extend(rows, rows)
    held = sum(part.nbytes for cache in caches for part in (cache.keys, cache.values))
    assert cache_bytes(config, 5, length, torch.bfloat16) == held


@pytest.mark.parametrize(("room", "expected"), [(None, 3), (3.0, 3), (2.9, 2), (0.5, 1)])
def test_no_more_files_are_written_side_by_side_than_there_is_room_for(
    room: float | None, expected: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = full_model(checkpoint)
    lock, at_work, most = threading.Lock(), 0, 0
    meet = threading.Barrier(expected)

    def counted(*given: Any) -> Any:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        meet.wait(PATIENCE)  # as many as may write at once do: fewer would never meet
        written = write_windows(*given)
        meet.wait(PATIENCE)
        with lock:
            at_work -= 1
        return written

    monkeypatch.setattr(own_text, "write_windows", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    one = cache_bytes(model.config, 4, 16, torch.float32)
    bound = None if room is None else int(room * one)
    text = OwnText(model, "base", Script.of(checkpoint, 0.8), [], 24, 16, 0, at_once=4, most_bytes=bound)
    assert text.windows(silent).shape == (24, 16)
    assert most == expected


def test_targets_that_have_no_room_are_not_kept(checkpoint: Path) -> None:
    model = full_model(checkpoint)
    windows = OwnText(
        model, "base", Script.of(checkpoint, 0.8), [], 64, 16, 0, TargetFiles(model, "base", 1000), at_once=64
    ).windows(silent)
    assert CachedTargets(model, "base", [windows], 10**9).missing == 64


def test_openings_come_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("<|endoftext|>".join([tiny.TEXT * 2, "short", tiny.TEXT[4:] * 2]))
    script = Script.of(checkpoint, 0.8)
    openings = script.openings([tmp_path / "t.txt"], "text")
    assert [len(opening.ids) for opening in openings] == [OPENING, OPENING]
    rows = OwnText(full_model(checkpoint), "base", script, openings, 5, 16, 0).windows(silent)
    assert [tuple(row[:OPENING]) for row in rows[:2].tolist()] == [opening.ids for opening in openings]
    assert (rows[2:, 0] == 0).all()


def test_chats_are_answered(chat: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "the cat"}]}) + "\n")
    script = Script.of(chat, 0.8)
    (opening,) = script.openings([path], "text")
    text = script.tokenizer.decode(list(opening.ids), skip_special_tokens=False)
    assert text == "[user]the cat<|endoftext|>[assistant]"
    assert opening.turn == 1


def test_chats_for_a_base_without_a_template_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "the cat"}]}) + "\n")
    with pytest.raises(InputError, match="no chat template"):
        Script.of(checkpoint, 0.8).openings([path], "text")


@pytest.mark.parametrize("kind", ["checkpoint", "chat"])
def test_training_needs_no_text(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    options = {"--own-tokens": 3000, "--steps": 8, "--batch-size": 4, "--sequence-length": 32, "--draft-vocab": 64}
    result = run("train", folder, *[part for pair in options.items() for part in pair], "--json")
    assert result.exit_code == 0, result.output
    with Checkpoint.open(folder) as source:
        assert source.recycler is not None
        assert source.draft_ids is not None
        assert len(source.draft_ids) == 64
        assert source.recycler.training["runs"][-1]["own_tokens"] == 3000


def test_what_needs_text_says_so(checkpoint: Path) -> None:
    for change, words in (({"joint": True}, "--data"), ({"regenerate": True}, "--data")):
        with pytest.raises(InputError, match=words):
            train(checkpoint, [], TrainingOptions(steps=1, **change))


def test_the_sampler_draws_likely_tokens_at_their_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 1e-9]])).repeat(20_000, 1)
    drawn = writer._sample(logits, torch.ones(20_000), torch.Generator().manual_seed(0))
    rates = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(rates, [0.5, 0.3, 0.2, 0], atol=0.015)
