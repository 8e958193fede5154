"""A bundle that is damaged or not one is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.bundle import describe_files
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.files import read_json, write_json
from tests.helpers.command import assert_refused, names, run

BINDING = ("model.onnx", "model.onnx.data", "recycler.onnx", "recycler.onnx.data", "tokenizer.json")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(bundle: Path, **values: object) -> None:
    write_json(bundle / "recycle.json", read_json(bundle / "recycle.json") | values)


def vouch(bundle: Path, name: str) -> None:
    """List a file as it is now."""
    described = describe_files(bundle, [name])[name]
    files = read_json(bundle / "recycle.json")["files"]
    edit_manifest(bundle, files={**files, name: {"bytes": described.bytes, "sha256": described.sha256}})


@pytest.mark.parametrize("name", BINDING)
@pytest.mark.parametrize("verb", ["generate", "inspect"])
def test_a_missing_truncated_or_altered_file_is_named(verb: str, name: str, bundle: Path) -> None:
    arguments = (verb, bundle, "the cat") if verb == "generate" else (verb, bundle)
    data = (bundle / name).read_bytes()
    altered = bytearray(data)
    altered[len(data) // 2] ^= 1
    for content, word in ((bytes(altered), "SHA-256"), (data[:-1], f"{len(data) - 1} bytes"), (b"", "0 bytes")):
        (bundle / name).write_bytes(content)
        assert_refused(run(*arguments), 2, name, "altered or damaged", word)
    (bundle / name).unlink()
    assert_refused(run(*arguments), 2, name, "missing")


def test_weights_altered_behind_an_unchanged_time_are_found_by_verify(bundle: Path) -> None:
    path = bundle / "model.onnx.data"
    assert run("inspect", bundle).exit_code == 0
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_refused(run("inspect", bundle, "--verify"), 2, "model.onnx.data", "SHA-256")
    assert_refused(run("generate", bundle, "the cat", "--verify-files"), 2, "model.onnx.data", "SHA-256")


def test_a_graph_that_the_manifest_vouches_for_but_is_none_is_a_failure(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"no graph at all")
    vouch(bundle, "model.onnx")
    assert_refused(run("generate", bundle, "the cat"), 1, "model.onnx", "cannot load")


def test_graphs_of_another_model_are_a_failure(bundle: Path) -> None:
    graphs = read_json(bundle / "recycle.json")["graphs"]
    graphs["full"]["num_layers"] = 3
    edit_manifest(bundle, graphs=graphs)
    assert_refused(run("generate", bundle, "the cat"), 1, "model.onnx", "graph contract", "present.2.key")


@pytest.mark.parametrize("version", ["2.0", "10.1", None])
def test_a_future_format_is_refused_and_says_what_to_do(version: str | None, bundle: Path) -> None:
    edit_manifest(bundle, format=version)
    for arguments in (("generate", bundle, "the cat"), ("inspect", bundle)):
        assert_refused(run(*arguments), 2, "format", str(version), "upgrade")


def test_a_later_minor_format_is_read(bundle: Path) -> None:
    edit_manifest(bundle, format="1.7", moods=["curious"])
    assert run("generate", bundle, "the cat", "-n", "2").exit_code == 0


@pytest.mark.parametrize("key", ["graphs", "files", "base"])
def test_a_manifest_without_its_parts_is_damaged(key: str, bundle: Path) -> None:
    manifest = read_json(bundle / "recycle.json")
    for value in (None, [], "text"):
        write_json(bundle / "recycle.json", {**manifest, key: value})
        assert_refused(run("generate", bundle, "the cat"), 2, "recycle.json")
    write_json(bundle / "recycle.json", {name: part for name, part in manifest.items() if name != key})
    assert_refused(run("generate", bundle, "the cat"), 2, "recycle.json", key)


def test_what_nobody_foresaw_is_one_line_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("recycle_onnx.bundle.check_is_bundle", fail)
    assert_refused(run("inspect", bundle), 1, "unexpected KeyError", "--debug")


def test_a_base_without_its_sizes_is_refused(bundle: Path) -> None:
    base = read_json(bundle / "recycle.json")["base"]
    edit_manifest(bundle, base={"context_length": base["context_length"]})
    assert_refused(run("inspect", bundle), 2, "recycle.json", "no 'num_layers'")


STRANGE_NAMES = ("../elsewhere", "/etc/passwd", "a/b.json", "..", "", ".bashrc", "a\\b.json", "notes.txt", "a\n.json")


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_name_that_is_no_plain_file_of_a_bundle_is_not_followed(name: str, bundle: Path) -> None:
    elsewhere = bundle.parent / "elsewhere"
    elsewhere.write_text("a secret")
    described = describe_files(bundle.parent, ["elsewhere"])["elsewhere"]
    files = read_json(bundle / "recycle.json")["files"]
    edit_manifest(bundle, files={**files, name: {"bytes": described.bytes, "sha256": described.sha256}})
    out = bundle.parent / "out"
    for arguments in (("generate", bundle, "the cat"), ("quantize", bundle, out / "q"), ("mtp", bundle, out / "m")):
        assert_refused(run(*arguments), 2, "recycle.json", "plain names")
    assert names(bundle.parent) == ["bundle", "elsewhere"]


def test_a_link_that_leads_out_of_a_bundle_is_not_followed(bundle: Path) -> None:
    for name in ("model.onnx.data", "tokenizer.json", "generation_config.json", "chat_template.jinja", "recycle.json"):
        moved = bundle.parent / name
        if (bundle / name).exists():
            (bundle / name).rename(moved)
        else:
            moved.write_text("{{ messages }}")
        (bundle / name).symlink_to(moved)
        for arguments in (("generate", bundle, "the cat"), ("quantize", bundle, bundle.parent / "out")):
            assert_refused(run(*arguments), 2, name, "a link that leads out", str(moved))
        (bundle / name).unlink()
        moved.rename(bundle / name)


def test_a_bundle_of_links_in_the_hub_s_cache_is_loaded(bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, path in enumerate(sorted(bundle.iterdir())):
        path.rename(model / "blobs" / f"hash{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{number}")
    assert run("generate", snapshot, "the cat", "-n", "2").exit_code == 0


SPECIAL = {"a pipe": os.mkfifo, "a device": lambda path: Path(path).symlink_to("/dev/zero"), "a folder": os.mkdir}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("name", ["recycle.json", "generation_config.json", "tokenizer.json", "model.onnx"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_neither_waited_for_nor_read_for_ever(kind: str, name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    SPECIAL[kind](bundle / name)
    for arguments in (("generate", bundle, "the cat"), ("quantize", bundle, bundle.parent / "out")):
        assert_refused(run(*arguments), 2, name, "expected a regular file")


@pytest.mark.parametrize("location", ["../victim.data", "/etc/passwd", "other.data", "*/_ORT_MEM_ADDR_/*"])
def test_a_graph_reads_weights_from_listed_files_only(location: str, bundle: Path) -> None:
    import onnx_ir as ir

    shutil.copyfile(bundle / "model.onnx.data", bundle.parent / "victim.data")
    shutil.copyfile(bundle / "model.onnx.data", bundle / "other.data")
    model = ir.load(bundle / "model.onnx")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value._location = location
            break
    ir.save(model, bundle / "model.onnx")
    vouch(bundle, "model.onnx")
    for arguments in (("generate", bundle, "the cat"), ("quantize", bundle, bundle.parent / "out")):
        assert_refused(run(*arguments), 2, "model.onnx", repr(location), "does not list")


def graph(half: str, **values: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["graphs"][half].update(values)


def top(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(values)


def base(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["base"].update(values)


WRONG_MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no graphs": top(graphs={}),
    "another graph": top(graphs={"third": {}}),
    "a graph in a text": top(graphs={"full": "model.onnx"}),
    "heads in a text": graph("full", num_kv_heads="2"),
    "half a head": graph("full", num_kv_heads=1.5),
    "1e9 layers": graph("full", num_layers=1e9),
    "2^31 layers": graph("recycler", num_layers=1 << 31),
    "no layers": graph("full", num_layers=0),
    "no places": graph("recycler", places=0),
    "half a place": graph("recycler", places=1.5),
    "no reach": graph("recycler", reach=0),
    "a reach in a text": graph("recycler", reach="5"),
    "yes layers": graph("full", num_layers=True),
    "a head of 2^31": graph("full", head_dim=1 << 31),
    "a vocabulary of 2^31": graph("full", vocab_size=1 << 31),
    "a kind that is another": graph("full", kind="recycler"),
    "an unknown type": graph("full", float_type="float8"),
    "taps in a text": graph("recycler", taps="final_post"),
    "no taps": graph("recycler", taps=[]),
    "a short draft vocabulary": top(draft_vocabulary=[1, 2]),
    "a draft vocabulary of texts": top(draft_vocabulary=["a"]),
    "a draft vocabulary in a text": top(draft_vocabulary="all"),
    "a context in a text": base(context_length="64"),
    "no context": base(context_length=0),
    "a context of one token": base(context_length=1),
    "an endless context": base(context_length=1 << 40),
    "a model type that is none": base(model_type=7),
    "parameters in a text": base(parameters="many"),
    "a flavour that is a list": top(flavour=[]),
    "a strategy that is a number": top(default_strategy=7),
    "a module that is a list": top(recycler=[]),
    "quantization in a text": top(quantization="int4"),
    "provenance in a list": top(provenance=[]),
    "a file in a text": lambda manifest: manifest["files"].update({"a.json": "a"}),
    "bytes in a text": lambda manifest: manifest["files"]["tokenizer.json"].update(bytes="7"),
    "negative bytes": lambda manifest: manifest["files"]["tokenizer.json"].update(bytes=-1),
    "another digest": lambda manifest: manifest["files"]["tokenizer.json"].update(sha256=7),
    "a digest that is none": lambda manifest: manifest["files"]["tokenizer.json"].update(sha256="../../x"),
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_a_manifest_of_wrong_kinds_or_sizes_is_refused(name: str, bundle: Path) -> None:
    manifest = read_json(bundle / "recycle.json")
    WRONG_MANIFESTS[name](manifest)
    write_json(bundle / "recycle.json", manifest)
    with pytest.raises(InputError, match=r"recycle\.json"):
        recycle_onnx.load(bundle)
    assert_refused(run("inspect", bundle), 2, "recycle.json")


@pytest.mark.parametrize("values", [{"num_kv_heads": 3}, {"head_dim": 24}, {"hidden_size": 40}, {"vocab_size": 999}])
def test_a_manifest_that_contradicts_its_graphs_is_refused(values: dict[str, int], bundle: Path) -> None:
    graphs = read_json(bundle / "recycle.json")["graphs"]
    edit_manifest(bundle, graphs={kind: {**spec, **values} for kind, spec in graphs.items()})
    with pytest.raises(RecycleError, match="graph contract"):
        recycle_onnx.load(bundle)


def test_what_is_no_bundle_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(run("generate", tmp_path / "nowhere", "the cat"), 2, "nowhere", "no such folder")
    assert_refused(run("generate", tiny_checkpoint, "the cat"), 2, "not a bundle", "recycle-onnx export")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "genai_config.json"])
def test_an_edited_config_is_a_warning_only(name: str, bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    (bundle / name).write_text(json.dumps(read_json(bundle / name) | {"note": "mine"}))
    assert run("generate", bundle, "the cat", "-n", "2").exit_code == 0
    assert f"{name} was edited" in caplog.text


def test_an_edited_generation_config_that_makes_no_sense_is_refused(bundle: Path) -> None:
    for text, word in (("{", "not valid JSON"), ('{"eos_token_id": "end"}', "eos_token_id")):
        (bundle / "generation_config.json").write_text(text)
        assert_refused(run("generate", bundle, "the cat"), 2, "generation_config.json", word)
