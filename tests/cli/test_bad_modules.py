"""A module that does not fit, or is none, is refused in one line, and nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from recycle_onnx.checkpoint import publish
from recycle_onnx.files import read_json, write_json
from tests.cli.test_bad_checkpoints import change_tensor, edit, not_a_number, put, remove, truncate
from tests.helpers import processes, tiny
from tests.helpers.command import assert_refused, names, run

CONFIG, WEIGHTS = "config.json", "model.safetensors"
Damage = Callable[[Path], None]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())
    publish(checkpoint, tmp_path / "module")
    return tmp_path / "module"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base", tiny.tiny_config())


def refused(base: Path, module: object, *words: str, options: tuple[object, ...] = ()) -> None:
    out = base.parent / "out"
    assert_refused(run("attach", base, out, "--module", module, *options), 2, *words)
    assert not [name for name in names(base.parent) if name == "out" or name.startswith(".")]


OTHER_SHAPES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "width": ({"hidden_size": 64}, ("hidden size 32 against 64",)),
    "layers": ({"num_layers": 3}, ("layers 2 against 3",)),
    "heads": ({"num_heads": 4}, ("num heads 2 against 4",)),
    "key-value heads": ({"num_kv_heads": 2}, ("num kv heads 1 against 2",)),
    "feed-forward": ({"intermediate_size": 64}, ("intermediate size 48 against 64",)),
    "vocabulary": ({"vocab_size": 320}, ("vocab size 300 against 320",)),
    "rotary positions": ({"rope_theta": 5000.0}, ("rope of layer 0",)),
    "much": (
        {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 320},
        ("layers 2 against 3", "hidden size 32 against 64", "and 1 more"),
    ),
}


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_a_base_of_another_shape_is_refused_by_what_differs(name: str, module: Path, tmp_path: Path) -> None:
    changes, words = OTHER_SHAPES[name]
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config(**changes))
    refused(base, module, "another base", *words)


def test_a_base_with_other_tokens_is_refused(module: Path, base: Path) -> None:
    path = base / "tokenizer.json"
    content = read_json(path)
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    write_json(path, content)
    count = Tokenizer.from_file(str(path)).get_vocab_size()
    refused(base, module, "another tokenizer", f"{count} tokens, other ones")
    del vocab["é" if "é" in vocab else "Ġ"]
    content["model"]["merges"] = []
    write_json(path, content)
    refused(base, module, "another tokenizer", f"{count} tokens, {count - 1} here")
    path.unlink()
    refused(base, module, "another tokenizer", "none here")


DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (remove(CONFIG), ("not a module", CONFIG)),
    "config is not JSON": (put(CONFIG, "{"), (CONFIG, "not valid JSON")),
    "another model's config": (put(CONFIG, '{"model_type": "llama"}'), ("not a module's", "publish")),
    "a future format": (edit(CONFIG, format="2.0"), ("'2.0'", "upgrade")),
    "an unknown convention": (edit(CONFIG, recycle="twice"), ("recycle", "'twice'", "post_norm")),
    "a base that is no object": (edit(CONFIG, base="llama"), ("base is 'llama'",)),
    "a base that is not described": (edit(CONFIG, base={}), ("does not describe the base",)),
    "a base whose config is none": (edit(CONFIG, base={"config": 3}), ("base.config is 3", "dict")),
    "a base of an unknown family": (
        edit(CONFIG, base={"config": {"model_type": "bert"}, "tokens": 1, "tokens_sha256": "a"}),
        ("'bert'",),
    ),
    "acceptance that is none": (edit(CONFIG, acceptance="high"), ("acceptance is 'high'",)),
    "more layers than stored": (edit(CONFIG, num_layers=2), ("layers.1", "missing")),
    "a draft vocabulary that is missing": (
        edit(CONFIG, draft_vocabulary={"size": 20, "file": "draft_vocabulary.json"}),
        ("draft_vocabulary.json", "no such file"),
    ),
    "no weights": (remove(WEIGHTS), (WEIGHTS, "no such file")),
    "truncated weights": (truncate(WEIGHTS, 0.5), (WEIGHTS, "damaged")),
    "other weights": (put(WEIGHTS, "PK"), (WEIGHTS, "damaged")),
    "NaN": (change_tensor(WEIGHTS, "projection.weight", not_a_number), ("projection.weight", "not finite")),
    "a tensor is missing": (change_tensor(WEIGHTS, "norm.weight", lambda a: None), ("norm.weight", "missing")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_module_is_refused(name: str, module: Path, base: Path) -> None:
    damage, words = DAMAGE[name]
    damage(module)
    refused(base, module, *words)


def test_what_is_no_module_is_refused(base: Path, tmp_path: Path) -> None:
    refused(base, tmp_path / "nowhere", "no such folder", "publish")
    refused(base, base / WEIGHTS, "is a file", "publish")
    (tmp_path / "empty").mkdir()
    refused(base, tmp_path / "empty", "not a module", CONFIG)
    refused(base, base, "not a module's", "publish")


OPTIONS = (("--layers", 1), ("--init", "random"), ("--tap", "final_post"), ("--concat", "embedding,hidden_state"),
           ("--recycle", "pre_norm"), ("--draft-vocab", 20), ("--draft-text", "text.txt"), ("--seed", 3))  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=[str(option[0]) for option in OPTIONS])
def test_what_the_module_decides_is_not_an_option(option: tuple[object, ...], module: Path, base: Path) -> None:
    refused(base, module, str(option[0]), "leave it out", options=option)


@pytest.mark.parametrize("option", [("--check",), ("--no-check",), ("--module-revision", "main")])
def test_what_is_about_a_module_needs_one(option: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    done = run("attach", base, tmp_path / "out", *option)
    assert_refused(done, 2, "--module FOLDER")


def test_a_revision_goes_with_a_hub_id(module: Path, base: Path) -> None:
    refused(base, module, "--module-revision", "is a path", options=("--module-revision", "main"))


def test_what_would_replace_the_module_is_refused(module: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(module, tmp_path / "out" / "inner")
    done = run("attach", base, tmp_path / "out", "--module", tmp_path / "out" / "inner", "--force")
    assert_refused(done, 2, "inner", "would delete")
    assert names(tmp_path / "out" / "inner") == names(module)


def test_publishing_what_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())
    assert_refused(run("publish", base, out), 2, "has no recyclable module", "attach")
    assert_refused(run("publish", tmp_path / "nowhere", out), 2, "no such folder")
    assert_refused(run("publish", checkpoint, out, "--dtype", "int8"), 2, "--dtype", "bfloat16")
    assert_refused(run("publish", checkpoint, out, "--base-model", "no id"), 2, "--base-model", "org/name")
    assert_refused(run("publish", checkpoint, out, "--licence", " "), 2, "--licence")
    change_tensor(f"recycler/{WEIGHTS}", "projection.weight", lambda a: 1e6 * a)(checkpoint)
    assert_refused(run("publish", checkpoint, out), 2, "projection.weight", "float16", "bfloat16")
    assert not out.exists()
    out.mkdir()
    assert_refused(run("publish", checkpoint, out, "--dtype", "bfloat16"), 2, "exists", "--force")
    assert run("publish", checkpoint, out, "--dtype", "bfloat16", "--force").exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="sets POSIX limits")
def test_a_full_disk_leaves_nothing_behind(module: Path, base: Path, tmp_path: Path) -> None:
    import resource

    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    for command in (
        ("attach", base, tmp_path / "out", "--module", module),
        ("publish", tmp_path / "model", tmp_path / "out"),
    ):
        done = processes.run(*command, limit=limit)
        assert done.returncode == 1, done.stderr
        assert "cannot write" in done.stderr
        assert names(tmp_path) == ["base", "model", "module"]
