"""A published module fits any copy of its base, and no other base."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import (
    Checkpoint,
    DraftVocabulary,
    Module,
    NewModule,
    RecyclerConfig,
    attach,
    join,
    publish,
)
from recycle_onnx.checkpoint.identity import vocabulary
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from tests.conftest import SAMPLE
from tests.helpers import tiny
from tests.helpers.command import names, run

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def trained(checkpoint: Path, **changes: Any) -> Path:
    """Let the module's config say that it was trained."""
    path = checkpoint / "recycler" / CONFIG
    write_json(path, {**read_json(path), "trained_depth": 1, **changes})
    return checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return trained(tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config()))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's module, with what it reaches."""
    out = tmp_path_factory.mktemp("published") / "module"
    done = run("publish", SAMPLE, out, "--licence", "apache-2.0", "--json")
    assert done.exit_code == 0, done.stderr
    return out


def base_of(checkpoint: Path, out: Path) -> Path:
    """The base alone."""
    return shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("recycler", "recipe", "README.md"))


def rounded(base: Path, out: Path, dtype: str) -> Path:
    """The same base, stored in another type."""
    base_of(base, out)
    tensors = {name: value.astype(dtype) for name, value in load_file(base / WEIGHTS).items()}
    save_file(tensors, out / WEIGHTS)
    return out


def other_module(folder: Path) -> Path:
    """One for the tiny base."""
    publish(tiny.write_checkpoint(folder / "tiny", tiny.tiny_config()), folder / "tiny-module")
    return folder / "tiny-module"


def test_a_published_module_has_no_base_and_nothing_of_this_machine(checkpoint: Path, tmp_path: Path) -> None:
    attach(checkpoint, tmp_path / "referring", reference=True)
    publish(trained(tmp_path / "referring"), tmp_path / "out")
    assert names(tmp_path / "out") == ["README.md", CONFIG, WEIGHTS]
    assert RecyclerConfig.read(tmp_path / "referring" / "recycler" / CONFIG).base is not None
    text = (tmp_path / "out" / CONFIG).read_text() + (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in text
    config = RecyclerConfig.read(tmp_path / "out" / CONFIG)
    assert config.base is not None
    assert config.base.path is None
    assert config.base.describes


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32"), ("stored", "F32")]
)
def test_weights_are_stored_as_asked(dtype: str, stored: str, checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, tmp_path / "out", dtype=dtype)
    module = Module.open(tmp_path / "out")
    assert module.weights().stored_type() == stored
    for name, value in load_file(checkpoint / "recycler" / WEIGHTS).items():
        kind = value.dtype if dtype == "stored" else dtype
        np.testing.assert_array_equal(module.weights().stored(name), value.astype(kind))


def test_the_same_base_takes_it_back_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, tmp_path / "out", dtype="stored")
    joined = join(base_of(checkpoint, tmp_path / "base"), tmp_path / "joined", Module.open(tmp_path / "out"))
    assert joined.same_weights
    assert joined.config.trained_on is None
    for name in (WEIGHTS, f"recycler/{WEIGHTS}", "tokenizer.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (checkpoint / name).read_bytes()
    with Checkpoint.open(checkpoint) as before, Checkpoint.open(tmp_path / "joined") as after:
        assert before.recycler is not None
        assert after.recycler == before.recycler


def test_a_whole_checkpoint_is_a_module_too(checkpoint: Path, tmp_path: Path) -> None:
    base = base_of(checkpoint, tmp_path / "base")
    assert join(base, tmp_path / "joined", Module.open(checkpoint)).same_weights


def test_a_checkpoint_of_an_earlier_version_is_described_by_its_base(tmp_path: Path) -> None:
    assert RecyclerConfig.read(SAMPLE / "recycler" / CONFIG).base is not None
    base = rounded(SAMPLE, tmp_path / "base", "float32")
    joined = join(base, tmp_path / "joined", Module.open(SAMPLE))
    assert not joined.same_weights
    with pytest.raises(InputError, match="does not describe the base"):
        Module.open(SAMPLE / "recycler")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_weights_are_told_of_and_kept_in_mind(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "joined", rounded(checkpoint, tmp_path / "base", dtype)
    publish(checkpoint, tmp_path / "module")
    done = run("attach", base, out, "--module", tmp_path / "module", "--no-check", "--json")
    assert done.exit_code == 0, done.stderr
    assert "not those that the module was trained on" in done.stderr
    found = json.loads(done.stdout)
    assert (found["same_weights"], found["acceptance"], found["module_trained"]) == (False, None, True)
    with Checkpoint.open(checkpoint) as before, Checkpoint.open(out) as after:
        assert before.recycler is not None
        assert after.recycler is not None
        assert after.recycler.trained_on == before.recycler.base
        assert after.recycler.base != before.recycler.base
    export(out, tmp_path / "bundle")


def test_a_module_that_was_joined_is_published_for_the_base_it_was_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, tmp_path / "first")
    join(rounded(checkpoint, tmp_path / "base", "float16"), tmp_path / "joined", Module.open(tmp_path / "first"))
    publish(tmp_path / "joined", tmp_path / "second")
    assert (tmp_path / "second" / CONFIG).read_bytes() == (tmp_path / "first" / CONFIG).read_bytes()


def test_a_draft_vocabulary_and_conventions_travel(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    attach(
        base,
        tmp_path / "model",
        NewModule(
            num_layers=2,
            tap=("layer.1", "final_post"),
            recycle="pre_norm",
            concat=("hidden_state", "embedding"),
            draft_vocabulary=DraftVocabulary(40, tmp_path / "text.txt"),
        ),
    )
    publish(trained(tmp_path / "model"), tmp_path / "module")
    assert "draft_vocabulary.json" in names(tmp_path / "module")
    join(base, tmp_path / "joined", Module.open(tmp_path / "module"))
    with Checkpoint.open(tmp_path / "model") as before, Checkpoint.open(tmp_path / "joined") as after:
        assert after.draft_ids == before.draft_ids
        assert after.recycler == before.recycler


def test_torchs_rows_travel_only_where_they_still_hold(tmp_path: Path) -> None:
    rows = "reference.safetensors"
    publish(SAMPLE, tmp_path / "float16")  # what the sample is stored in
    publish(SAMPLE, tmp_path / "float32", dtype="float32")
    assert (rows in names(tmp_path / "float16"), rows in names(tmp_path / "float32")) == (True, False)
    module = Module.open(tmp_path / "float16")
    join(base_of(SAMPLE, tmp_path / "same"), tmp_path / "a", module)
    join(rounded(SAMPLE, tmp_path / "other", "bfloat16"), tmp_path / "b", module)
    assert (rows in names(tmp_path / "a" / "recycler"), rows in names(tmp_path / "b" / "recycler")) == (True, False)


def test_joining_in_place_adds_the_module_only(checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, tmp_path / "module")
    base = base_of(checkpoint, tmp_path / "base")
    before = names(base)
    assert run("attach", base, base, "--module", tmp_path / "module").exit_code == 0
    assert names(base) == sorted([*before, "recycler"])
    assert run("attach", base, base, "--module", tmp_path / "module").exit_code == 2
    assert run("attach", base, base, "--module", tmp_path / "module", "--force").exit_code == 0


def test_a_long_training_log_is_thinned(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "training.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 5001)))
    publish(checkpoint, tmp_path / "module")
    steps = [json.loads(line)["step"] for line in (tmp_path / "module" / "training.jsonl").read_text().splitlines()]
    assert (steps[0], len(steps)) == (1, 500)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib (the extra plot)")
def test_the_curves_of_a_published_module_can_be_drawn(checkpoint: Path, tmp_path: Path) -> None:
    step = {"next_token": 2.0, "recycle": 3.0, "acceptance": [0.5], "learning_rate": 1e-3}
    (checkpoint / "training.jsonl").write_text("".join(json.dumps({"step": n, **step}) + "\n" for n in range(1, 9)))
    publish(checkpoint, tmp_path / "module")
    assert run("inspect", tmp_path / "module", "--plot", tmp_path / "curves.png").exit_code == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_vocabulary_is_recognised_however_it_is_written(checkpoint: Path, tmp_path: Path) -> None:
    base = base_of(checkpoint, tmp_path / "base")
    content = read_json(base / "tokenizer.json")
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["post_processor"] = None
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary(base) == vocabulary(checkpoint)
    left, right = list(content["model"]["vocab"])[:2]
    vocab = content["model"]["vocab"]
    vocab[left], vocab[right] = vocab[right], vocab[left]
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary(base)[1] != vocabulary(checkpoint)[1]


def test_a_llama_by_another_name_is_the_same_base(checkpoint: Path, tmp_path: Path) -> None:
    base = base_of(checkpoint, tmp_path / "base")
    write_json(base / CONFIG, {**read_json(base / CONFIG), "model_type": "mistral", "sliding_window": None})
    joined = join(base, tmp_path / "joined", Module.open(checkpoint))
    assert joined.config.layer == "mistral"
    with Checkpoint.open(tmp_path / "joined") as opened:
        assert opened.recycler is not None


def test_the_card_says_what_is_known_and_what_is_not(published: Path, checkpoint: Path, tmp_path: Path) -> None:
    card = (published / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\nlibrary_name: recycle-onnx\n')
    for text in ("| 4 | frozen | the base's own at 1.0 | 240 x 8 x 256 | 3 |", "80.6%, 79.6%, 79.0%",
                 "proposals accepted (greedy, after 8 openings of its own, int8)", "--module FOLDER",
                 "llama, 6 layers of 256", "The base's, apache-2.0"):  # fmt: skip
        assert text in card
    done = run("publish", checkpoint, tmp_path / "module", "--base-model", "org/Tiny-1", "--no-check")
    card = (tmp_path / "module" / "README.md").read_text()
    assert 'base_model: "org/Tiny-1"\nbase_model_relation: adapter\n' in card
    assert "# A recyclable module for Tiny-1\n" in card
    assert "license:" not in card
    assert "Not known" in card
    assert "licence is not known" in done.stderr


def test_inspect_shows_a_published_module(published: Path) -> None:
    found = json.loads(run("inspect", published, "--json").stdout)
    assert (found["kind"], found["module_trained"], found["base"]["hidden_size"]) == ("module", True, 256)
    assert found["recycler"]["acceptance"]["rate"] > 0.7
    shown = run("inspect", published).stdout
    assert "a module" in shown
    assert "untrained" not in shown


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf (the extra gguf)")
def test_one_module_fits_a_gguf_and_a_bfloat16_copy_of_its_base(published: Path, tmp_path: Path) -> None:
    from tests.helpers.gguf_writer import write_gguf

    bases = [
        write_gguf(tmp_path / "stories.gguf", rounded(SAMPLE, tmp_path / "float32", "float32"), "Q8_0"),
        rounded(SAMPLE, tmp_path / "bfloat16", "bfloat16"),
    ]
    for base in bases:
        out = tmp_path / f"{base.name}-joined"
        done = run("attach", base, out, "--module", published)
        assert done.exit_code == 0, done.stderr
        assert "not those that the module was trained on" in done.stderr
        assert "warning" not in done.stderr
        assert "; published: " in done.stdout
        found = run("attach", base, out, "--module", published, "--force", "--json")
        acceptance = json.loads(found.stdout)["acceptance"]
        assert acceptance["rate"] > 0.7
        assert acceptance["proposals"] > 100
    other = run("attach", bases[0], tmp_path / "no", "--module", other_module(tmp_path))
    assert other.exit_code == 2
    assert f"another base than {bases[0]}: layers 2 against 6" in other.stderr
    export(tmp_path / "bfloat16-joined", tmp_path / "bundle")
    model = recycle_onnx.load(tmp_path / "bundle")
    texts = [model.generate("One day", strategy=name, max_new_tokens=40).tokens for name in ("verify", "full")]
    assert texts[0] == texts[1]
    assert model.module_trained


def test_a_module_that_is_much_worse_here_is_warned_of(published: Path, tmp_path: Path) -> None:
    base = base_of(SAMPLE, tmp_path / "base")
    tensors = load_file(base / WEIGHTS)
    generator = np.random.default_rng(0)
    head = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = (head * generator.uniform(-1, 1, head.shape)).astype(head.dtype)
    save_file(tensors, base / WEIGHTS)
    done = run("attach", base, tmp_path / "joined", "--module", published)
    assert done.exit_code == 0, done.stderr
    assert "far below the published" in done.stderr
    assert "recycle-onnx train" in done.stderr


def test_a_check_that_fails_leaves_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    base = base_of(checkpoint, tmp_path / "base")
    config = read_json(base / "tokenizer_config.json")
    write_json(base / "tokenizer_config.json", {**config, "chat_template": "{% for %}"})
    done = run("attach", base, tmp_path / "joined", "--module", checkpoint, "--check")
    assert done.exit_code == 0, done.stderr
    assert "acceptance was not measured" in done.stderr
    with Checkpoint.open(tmp_path / "joined") as opened:
        assert opened.recycler is not None
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_bases_of_the_same_numbers_to_rounding_are_the_same(checkpoint: Path, tmp_path: Path) -> None:
    base = base_of(checkpoint, tmp_path / "base")
    write_json(base / CONFIG, {**read_json(base / CONFIG), "rms_norm_eps": float(np.float32(1e-5))})
    assert join(base, tmp_path / "joined", Module.open(checkpoint)).same_weights
    write_json(base / CONFIG, {**read_json(base / CONFIG), "rms_norm_eps": 1.1e-5})
    with pytest.raises(InputError, match="norm"):
        join(base, tmp_path / "again", Module.open(checkpoint))


def test_fields_of_a_later_version_are_ignored(checkpoint: Path, tmp_path: Path) -> None:
    publish(checkpoint, tmp_path / "module")
    path = tmp_path / "module" / CONFIG
    raw = read_json(path)
    later = {**raw, "format": "1.9", "colour": "green", "base": {**raw["base"], "mood": 3}}
    write_json(path, later)
    before = RecyclerConfig.read(checkpoint / "recycler" / CONFIG)
    config = RecyclerConfig.read(path)
    assert replace(config, format=before.format) == before
