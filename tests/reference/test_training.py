"""Training improves the module, leaves a frozen base alone, and survives an interruption."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from recycle_onnx.checkpoint import BaseConfig, Checkpoint, Module, NewModule, RecyclerConfig, attach
from recycle_onnx.checkpoint.recycler import FORMAT
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.training import budget
from recycle_onnx.training.log import read_log
from recycle_onnx.training.model import RecycleGPT
from recycle_onnx.training.objective import Losses, _chain
from recycle_onnx.training.options import Progress, TrainingOptions
from recycle_onnx.training.setup import set_up
from recycle_onnx.training.stepper import Stepper, Together
from recycle_onnx.training.storage import load_model
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.helpers.command import run

TEXT = "The cat sat on the mat and the dog sat on the log. A hen ran to the pen, and the fox ran home. "
KILLS = int(os.environ.get("RECYCLE_ONNX_KILLS", 3))
OPTIONS = TrainingOptions(steps=30, batch_size=4, sequence_length=32, learning_rate=5e-3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(), seed=2)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join([TEXT * 3] * 30))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(checkpoint: Path, text: Path, options: TrainingOptions) -> list[Progress]:
    seen: list[Progress] = []
    train(checkpoint, [text], options, report=seen.append)
    return seen


def test_a_frozen_base_is_not_touched_and_the_module_learns_it(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "model.safetensors")
    seen = losses(checkpoint, text, OPTIONS)
    assert seen[-1].recycle < seen[0].recycle - 0.1
    assert digest(checkpoint / "model.safetensors") == before


def test_joint_training_improves_both_halves_and_the_base_loads_in_transformers(checkpoint: Path, text: Path) -> None:
    seen = losses(checkpoint, text, TrainingOptions(**{**vars(OPTIONS), "joint": True}))
    assert seen[-1].next_token < seen[0].next_token - 0.5
    assert seen[-1].recycle < seen[0].recycle - 0.5
    with Checkpoint.open(checkpoint):
        LlamaForCausalLM.from_pretrained(checkpoint)


def test_the_same_seed_gives_the_same_losses(tmp_path: Path, text: Path) -> None:
    runs = [losses(tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()), text, OPTIONS) for name in "ab"]
    assert [step.recycle for step in runs[0]] == [step.recycle for step in runs[1]]


def test_the_export_compares_its_graphs_with_the_trained_reference(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    train(checkpoint, [text], OPTIONS)
    difference = export(checkpoint, tmp_path / "bundle").self_check.against_reference
    assert difference is not None
    assert difference < 1e-4


PLAIN = tiny.tiny_config()
WINDOWED = replace(
    PLAIN,
    layers=tuple(replace(layer, window=3) for layer in PLAIN.layers),
    attention_softcap=2.0,
    position_offset=2,
)


@pytest.mark.parametrize(
    ("base", "config"),
    [
        (PLAIN, RecyclerConfig(2)),
        (PLAIN, RecyclerConfig(2, recycle="pre_norm")),
        (PLAIN, RecyclerConfig(2, tap=("layer.1", "final_post"))),
        (WINDOWED, RecyclerConfig(2)),
    ],
    ids=["default", "before the norm", "two taps", "windows, learned positions"],
)
def test_a_trained_chain_is_the_chain_that_decoding_runs(base: BaseConfig, config: RecyclerConfig) -> None:
    """Every place of every chain, against the module on one text at a time without a cache."""
    torch.manual_seed(0)
    model = RecycleGPT(base, config)
    ids = torch.randint(0, 300, (1, 14))
    full = model.full(ids[:, :-1])
    depth = 3
    for place, step in enumerate(_chain(model, ids[:, :-1], full.hidden_states, depth)):
        logits = model.full.logits(step)
        for row in range(logits.shape[1]):
            states = full.hidden_states[:, : row + 1]
            for index in range(place + 1):
                output = model.recycle(ids[:, 1 : row + 2 + index], states)
                states = torch.cat([states, output.hidden_states[:, -1:]], dim=1)
            torch.testing.assert_close(logits[:, row], output.logits[:, -1], atol=1e-5, rtol=1e-5)


def test_a_resumed_training_goes_on_with_the_losses_of_an_uninterrupted_one(tmp_path: Path, text: Path) -> None:
    whole, parted = (tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()) for name in ("whole", "parted"))
    expected = losses(whole, text, OPTIONS)
    seen: list[Progress] = []

    def interrupt(now: Progress) -> None:
        seen.append(now)
        if now.step in (7, 20):
            raise KeyboardInterrupt

    for resume in (False, True, True):
        train(parted, [text], OPTIONS, report=interrupt, resume=resume)
    assert [now.recycle for now in seen] == [now.recycle for now in expected]
    assert digest(parted / "recycler" / "model.safetensors") == digest(whole / "recycler" / "model.safetensors")
    log = [json.loads(line) for line in (parted / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 31))
    with Checkpoint.open(parted) as source:
        assert source.recycler is not None
        assert [run["steps"] for run in source.recycler.training["runs"]] == [30]
    with pytest.raises(InputError, match="no unfinished training"):
        train(parted, [text], OPTIONS, resume=True)


def test_ctrl_c_lets_the_step_in_progress_end(tmp_path: Path, text: Path) -> None:
    """A real signal in the middle of a step: what is saved is the state after it, not half of one."""
    whole, parted = (tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()) for name in ("whole", "parted"))
    train(whole, [text], OPTIONS)

    def report(now: Progress) -> None:
        if now.step in (3, 11):
            threading.Timer(0.002, signal.raise_signal, [signal.SIGINT]).start()

    for resume in (False, True):
        result = train(parted, [text], OPTIONS, report=report, resume=resume)
        assert result.ended == "interrupted"
        assert result.steps == len(read_log(parted))
    train(parted, [text], OPTIONS, resume=True)
    assert [line["recycle"] for line in read_log(parted)] == [line["recycle"] for line in read_log(whole)]
    assert digest(parted / "recycler" / "model.safetensors") == digest(whole / "recycler" / "model.safetensors")


def test_a_training_is_not_resumed_under_other_options_or_on_other_text(checkpoint: Path, text: Path) -> None:
    def interrupt(now: Progress) -> None:
        raise KeyboardInterrupt

    train(checkpoint, [text], OPTIONS, report=interrupt)
    with pytest.raises(InputError, match="begun with seed 0, not 1"):
        train(checkpoint, [text], TrainingOptions(**{**vars(OPTIONS), "seed": 1}), resume=True)
    attach(checkpoint, checkpoint, NewModule(recycle="pre_norm"), force=True)
    with pytest.raises(InputError, match="begun with the module's recycle post_norm, not pre_norm"):
        train(checkpoint, [text], OPTIONS, resume=True)
    attach(checkpoint, checkpoint, force=True)
    text.write_text(text.read_text() + TEXT)
    with pytest.raises(InputError, match="begun with data"):
        train(checkpoint, [text], OPTIONS, resume=True)


@pytest.mark.parametrize("joint", [False, True])
def test_a_training_survives_being_killed_at_any_moment(joint: bool, tmp_path: Path, text: Path) -> None:
    whole, killed = (tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()) for name in ("whole", "killed"))
    options = TrainingOptions(**{**vars(OPTIONS), "joint": joint, "steps": 40 * KILLS, "save_minutes": 0.0})
    train(whole, [text], replace(options, save_minutes=10.0))
    code = (
        "from pathlib import Path\n"
        "from recycle_onnx.training.trainer import train\n"
        "from recycle_onnx.training.options import TrainingOptions\n"
        f"folder = Path({str(killed)!r})\n"
        f"train(folder, [Path({str(text)!r})], TrainingOptions(**{vars(options)!r}),"
        " report=lambda now: print(now.step, flush=True), resume=(folder / 'training.pt').exists())\n"
        "print('done', flush=True)"
    )
    moments = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # training has begun
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        process.wait()
        with Checkpoint.open(killed) as source:
            assert source.recycler is not None
        if b"done" in process.stdout.read():
            break  # too late for a kill: to run it again would be another training
    else:
        last = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert last.returncode == 0, last.stderr
    for part in ("model.safetensors", "recycler/model.safetensors"):
        assert digest(killed / part) == digest(whole / part)
    logs = [[(line["step"], line["next_token"], line["recycle"]) for line in read_log(f)] for f in (whole, killed)]
    assert len(logs[0]) == options.steps
    assert logs[0] == logs[1]


def test_without_a_budget_it_stops_when_acceptance_stops_rising(
    checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "DEFAULT_MINUTES", 0.4)
    options = TrainingOptions(**{**vars(OPTIONS), "steps": None, "learning_rate": 1e-9})
    result = train(checkpoint, [text], options)
    assert result.ended == "plateau"


def test_training_on_the_bases_own_text_raises_acceptance(checkpoint: Path, text: Path) -> None:
    options = TrainingOptions(**{**vars(OPTIONS), "steps": 60, "regenerate": True, "temperature": 1.0})
    seen = losses(checkpoint, text, options)
    assert seen[-1].recycle < seen[0].recycle


def test_the_module_gets_a_card_that_says_how_it_was_made(checkpoint: Path, text: Path) -> None:
    result = train(checkpoint, [text], OPTIONS)
    card = (checkpoint / "recycler" / "README.md").read_text()
    rates = ", ".join(f"{rate:.1%}" for rate in result.held_out_acceptance)
    assert f"| 30 x 4 x 32 | 3 | {result.seconds:.0f} |" in card
    assert "| 1 | frozen | given, 3,168 tokens |" in card
    assert f"| {rates} |" in card


@pytest.mark.parametrize("joint", [False, True])
def test_training_describes_the_base_as_the_one_it_was_trained_on(joint: bool, checkpoint: Path, text: Path) -> None:
    path = checkpoint / "recycler" / "config.json"
    raw = read_json(path)
    earlier = {name: raw["base"][name] for name in ("config_sha256", "weights_sha256", "path")}
    write_json(path, {**raw, "format": "1.0", "base": earlier, "trained_on": raw["base"], "acceptance": {"rate": 0.1}})
    train(checkpoint, [text], replace(OPTIONS, steps=2, joint=joint))
    with Checkpoint.open(checkpoint) as source:
        config = source.recycler
        assert config is not None
        assert config.base is not None
        assert (config.trained_on, config.acceptance, config.format) == (None, None, FORMAT)
        assert config.base.describes
        assert Module.open(checkpoint).trained_on == config.base


def test_what_was_learnt_is_published_and_joined(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    train(checkpoint, [text], OPTIONS)
    assert run("publish", checkpoint, tmp_path / "module", "--no-check").exit_code == 0
    assert "| 1 | frozen | given, 3,168 tokens | 30 x 4 x 32 | 3 |" in (tmp_path / "module" / "README.md").read_text()
    assert (tmp_path / "module" / "training.jsonl").read_bytes().count(b"\n") == 30
    done = run("attach", checkpoint, tmp_path / "joined", "--module", tmp_path / "module", "--check")
    assert done.exit_code == 0, done.stderr
    assert "on held-out text, in training" in done.stdout
    losses(tmp_path / "joined", text, replace(OPTIONS, steps=2))


def test_ctrl_c_keeps_what_was_learnt(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "recycler" / "model.safetensors")

    def interrupt(now: Progress) -> None:
        if now.step == 5:
            raise KeyboardInterrupt

    result = train(checkpoint, [text], OPTIONS, report=interrupt)
    assert (result.ended, result.steps) == ("interrupted", 5)
    assert digest(checkpoint / "recycler" / "model.safetensors") != before
    with Checkpoint.open(checkpoint) as source:
        assert source.recycler is not None
        assert source.recycler.training["runs"][-1]["steps"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps"),
        ({"minutes": 1.0}, "one budget"),
        ({"depth": 0}, "--depth"),
        ({"gradient_accumulation": 0}, "--gradient-accumulation"),
        ({"gradient_accumulation": 3}, "multiple of 3"),
        ({"clip": 0.0}, "--clip"),
        ({"optimizer": "sgd"}, "'sgd'.*adamw, muon"),
        ({"overlap": -1.0}, "--overlap"),
        ({"cache_gb": -1.0}, "--cache-gb"),
        ({"draft_vocab": 5}, "draft-vocab"),
        ({"own_tokens": 3}, "--own-tokens"),
        ({"joint": True, "own_tokens": 1000}, "--own-tokens.*frozen base"),
        ({"precision": "fp16"}, "'fp16'.*fp32, bf16"),
        ({"joint": True, "regenerate": True}, "frozen base"),
        ({"regenerate": True, "temperature": 0.0}, "--temperature"),
        ({"batch_size": 0}, "--batch-size"),
        ({"sequence_length": 4}, "--sequence-length"),
        ({"sequence_length": 4096}, "context"),
        ({"learning_rate": -1.0}, "--lr"),
    ],
)
def test_options_out_of_range_are_refused(checkpoint: Path, text: Path, change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(checkpoint, [text], TrainingOptions(**{**vars(OPTIONS), **change}))


def test_missing_empty_and_short_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for content in (None, "", "too short"):
        path = tmp_path / "data.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match=r"data\.txt"):
            train(checkpoint, [path], OPTIONS)


def test_a_diverging_training_stops_and_keeps_the_module(checkpoint: Path, text: Path) -> None:
    before = digest(checkpoint / "recycler" / "model.safetensors")
    options = TrainingOptions(**{**vars(OPTIONS), "learning_rate": 0.99, "joint": True, "recycle_weight": float("inf")})
    with pytest.raises(RecycleError, match=r"step 1\b.*lower --lr"):
        train(checkpoint, [text], options)
    assert digest(checkpoint / "recycler" / "model.safetensors") == before


def test_a_loss_that_goes_bad_in_mid_run_keeps_the_step_before(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault put into step 3; every step before it is saved, and a resumed training goes on from there."""
    whole, broken = (tiny.write_checkpoint(tmp_path / name, tiny.tiny_config()) for name in ("whole", "broken"))
    options = replace(OPTIONS, steps=6, save_minutes=0.0)
    train(whole, [text], options)
    count, step = 0, Stepper.step

    def faulty(self: Stepper, number: int, batch: torch.Tensor, rate: float) -> Losses:
        nonlocal count
        count += 1
        if count == 3:
            with torch.no_grad():
                next(iter(self.trained.values())).fill_(math.nan)
        return step(self, number, batch, rate)

    monkeypatch.setattr(Stepper, "step", faulty)
    with pytest.raises(RecycleError, match="the loss became nan in step 3; what was saved before is kept"):
        train(broken, [text], options)
    assert [line["step"] for line in read_log(broken)] == [1, 2]
    with Checkpoint.open(broken) as checkpoint:
        assert checkpoint.recycler is not None
        assert checkpoint.recycler.training["runs"][-1]["steps"] == 2
        assert all(tensor.isfinite().all() for tensor in load_model(checkpoint).state_dict().values())
    train(broken, [text], options, resume=True)
    assert [line["recycle"] for line in read_log(broken)] == [line["recycle"] for line in read_log(whole)]


def test_the_curves_are_drawn_when_a_training_ends(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    arguments = ("-d", text, "--steps", 5, "--batch-size", 4, "--sequence-length", 32)
    result = run("train", checkpoint, *arguments, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    rates = [line["learning_rate"] for line in read_log(checkpoint)]
    assert max(rates) > rates[0] > 0


def test_a_module_alone_is_trained_by_muon_and_a_whole_model_by_adamw(checkpoint: Path, text: Path) -> None:
    for joint, kind in ((False, torch.optim.Muon), (True, torch.optim.AdamW)):
        with set_up(checkpoint, [text], [], replace(OPTIONS, joint=joint), print) as setup:
            optimizer = Stepper(setup).optimizer
            parts = optimizer.parts if isinstance(optimizer, Together) else (optimizer,)
            assert isinstance(parts[0], kind)
