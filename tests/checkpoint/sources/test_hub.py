"""Models on the hub, from a cache laid out as huggingface_hub does; there is no network here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from recycle_onnx.checkpoint import attach, publish
from tests.helpers import heads, processes, tiny
from tests.helpers.command import assert_one_error, assert_refused, names, run

COMMIT, OTHER = "c" * 40, "d" * 40
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs huggingface_hub (the extra hub)")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that holds tiny/model, `main` being one commit and `v1` another."""
    model = tmp_path / "home" / "hub" / "models--tiny--model"
    for name, commit, seed in (("main", COMMIT, 0), ("v1", OTHER, 1)):
        base = tiny.write_base(tmp_path / "made" / name, tiny.tiny_config(), seed)
        (base / "pytorch_model.bin").write_bytes(b"fetched by something else")
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (model / "blobs").mkdir(exist_ok=True)
        for path in base.iterdir():
            blob = model / "blobs" / f"{name}-{path.name}"
            path.rename(blob)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(commit)
    return tmp_path / "home"


def offline(cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, since huggingface_hub reads its variables when it is imported."""
    env = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    return processes.run(*arguments, env=env, cwd=cache.parent)


@needs_hub
def test_a_cached_model_is_attached_to_and_its_commit_kept(cache: Path) -> None:
    out = cache.parent / "out"
    done = offline(cache, "attach", "tiny/model", out)
    assert done.returncode == 0, done.stderr
    assert names(out) == [
        "config.json", "generation_config.json", "model.safetensors", "recycler", "source.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert not any(path.is_symlink() for path in out.iterdir())
    source = json.loads((out / "source.json").read_text())
    assert source == {"kind": "hub", "id": "tiny/model", "revision": "main", "commit": COMMIT}
    shown = run("inspect", out).stdout
    assert "commit " in shown
    assert COMMIT in shown


@needs_hub
def test_another_revision_is_another_commit(cache: Path) -> None:
    done = offline(cache, "attach", "tiny/model", "out", "--revision", "v1", "--reference")
    assert done.returncode == 0, done.stderr
    out = cache.parent / "out"
    assert names(out) == ["recycler", "source.json"]
    assert json.loads((out / "source.json").read_text())["commit"] == OTHER
    assert OTHER in json.loads((out / "recycler" / "config.json").read_text())["base"]["path"]


@needs_hub
def test_a_cached_model_is_exported(cache: Path) -> None:
    done = offline(cache, "export", "tiny/model", "bundle")
    assert done.returncode == 0, done.stderr
    found = json.loads(run("inspect", cache.parent / "bundle", "--json").stdout)
    assert (found["source"]["commit"], found["provenance"]["checkpoint"]) == (COMMIT, "model")


def cached(cache: Path, name: str, folder: Path) -> None:
    """Let the cache hold `folder` as a model."""
    model = cache / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)


@needs_hub
def test_a_published_module_is_joined_by_its_id(cache: Path) -> None:
    base, out = cache.parent / "base", cache.parent / "out"
    tiny.write_base(base, tiny.tiny_config())
    attach(base, cache.parent / "checkpoint")
    publish(cache.parent / "checkpoint", cache.parent / "module")
    cached(cache, "tiny/module", cache.parent / "module")
    done = offline(cache, "attach", base, out, "--module", "tiny/module", "--module-revision", "main")
    assert done.returncode == 0, done.stderr
    assert names(out / "recycler") == ["README.md", "config.json", "model.safetensors"]
    done = offline(cache, "attach", base, "again", "--module", "tiny/model")
    assert done.returncode == 2
    assert_one_error(done.stderr, "tiny/model", "not a module's")
    done = offline(cache, "attach", base, "again", "--module", "tiny/other")
    assert done.returncode == 1
    assert_one_error(done.stderr, "tiny/other", "not in the hub's cache")


@needs_hub
def test_a_head_is_read_by_its_id(cache: Path) -> None:
    base = heads.write_base(cache.parent / "base")
    cached(cache, "tiny/head", heads.write_eagle3(cache.parent / "head"))
    for options in ((), ("--module-revision", "main")):
        out = cache.parent / f"out{len(options)}"
        attached = offline(cache, "attach", base, out, "--head", "tiny/head", "--no-check", *options)
        assert attached.returncode == 0, attached.stderr
        assert "the head of tiny/head (format eagle3)" in attached.stdout


@needs_hub
@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: mit\n---\nA model.", "mit"), ("A model.", None), ("---\nlicense: [\n---\n", None)],
)
def test_a_licence_is_what_the_card_says(card: str, licence: str | None, cache: Path) -> None:
    (cache / "hub" / "models--tiny--model" / "snapshots" / COMMIT / "README.md").write_text(card)
    done = offline(cache, "attach", "tiny/model", "out")
    assert done.returncode == 0, done.stderr
    out = cache.parent / "out"
    assert json.loads((out / "source.json").read_text()).get("license") == licence
    assert "README.md" not in names(out)
    publish(out, cache.parent / "module")
    published = (cache.parent / "module" / "README.md").read_text()
    assert 'base_model: "tiny/model"' in published
    assert ('license: "mit"' in published) is (licence is not None)


@needs_hub
@pytest.mark.parametrize("arguments", [("tiny/other",), ("tiny/model", "--revision", "v2")])
def test_what_is_not_cached_needs_a_network(cache: Path, arguments: tuple[str, ...]) -> None:
    done = offline(cache, "attach", arguments[0], "out", *arguments[1:])
    assert done.returncode == 1
    assert_one_error(done.stderr, arguments[0], "not in the hub's cache", "HF_HUB_OFFLINE", *arguments[2:])
    assert names(cache.parent) == ["home", "made"]


@needs_hub
def test_a_model_without_safetensors_is_refused(cache: Path) -> None:
    (cache / "hub" / "models--tiny--model" / "snapshots" / COMMIT / "model.safetensors").unlink()
    done = offline(cache, "attach", "tiny/model", "out")
    assert done.returncode == 2
    assert_one_error(done.stderr, "tiny/model", "model*.safetensors")


def test_a_path_wins_over_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_base(tmp_path / "tiny" / "model", tiny.tiny_config())
    assert run("attach", "tiny/model", "out").exit_code == 0
    assert names(tmp_path) == ["out", "tiny"]
    assert_refused(run("attach", "tiny/model", "again", "--revision", "main"), 2, "--revision", "tiny/model is a path")


def test_without_huggingface_hub_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused(run("attach", "tiny/model", "out"), 2, "tiny/model", "no such folder", "recycle-onnx[hub]")
    assert names(tmp_path) == []


@needs_hub
def test_what_cannot_be_an_id_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("attach", "tiny/a..b", "out"), 2, "tiny/a..b", "not a hub id")


@pytest.mark.parametrize("name", ["model", "./tiny/model", "a/b/c", "../tiny/model"])
def test_a_mistyped_path_is_no_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("attach", name, "out"), 2, "no such folder")
