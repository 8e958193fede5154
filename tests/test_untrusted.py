"""Folders from strangers: names, links and special files lead nowhere."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.provenance import write_source
from recycle_onnx.untrusted import copy_tree, printable
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())


def as_snapshot(folder: Path, model: Path) -> Path:
    """The folder as the hub's cache keeps it: links to blobs."""
    snapshot = model / "snapshots" / "abc"
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        (model / "blobs").mkdir(exist_ok=True)
        path.rename(model / "blobs" / f"hash{number}")
        link.symlink_to(os.path.relpath(model / "blobs" / f"hash{number}", link.parent))
    return snapshot


def test_a_checkpoint_in_the_hub_s_cache_opens(checkpoint: Path, tmp_path: Path) -> None:
    snapshot = as_snapshot(checkpoint, tmp_path / "hub" / "models--org--name")
    assert run("export", snapshot, tmp_path / "bundle").exit_code == 0
    assert run("attach", snapshot, tmp_path / "copy").exit_code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


def test_weights_may_lie_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "shared.safetensors")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "shared.safetensors")
    assert run("export", checkpoint, tmp_path / "bundle").exit_code == 0


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])
@pytest.mark.parametrize("verb", ["export", "attach"])
def test_what_a_link_leads_to_is_not_copied(verb: str, name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(tmp_path / "secret")
    assert_refused(run(verb, checkpoint, tmp_path / "out"), 2, name, "a link that leads out", "secret")
    assert names(tmp_path) == ["model", "secret"]


def test_no_link_is_followed_while_a_folder_is_copied(checkpoint: Path, tmp_path: Path) -> None:
    for target in ("/dev/zero", "/etc", str(tmp_path)):
        (checkpoint / "notes").symlink_to(target)
        (tmp_path / "copy").mkdir()
        with pytest.raises(InputError, match="notes: a"):
            copy_tree(checkpoint, tmp_path / "copy", lambda folder, found: [])
        (checkpoint / "notes").unlink()
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused(kind: str, name: str, checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / name
    path.unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    assert_refused(run("export", checkpoint, tmp_path / "bundle"), 2, name, "expected a regular file")


@pytest.mark.parametrize("name", ["../shard.safetensors", "/etc/shard.safetensors", "a/../../shard.safetensors", "."])
def test_an_index_names_shards_beside_it_only(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "shard.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert_refused(run("export", checkpoint, tmp_path / "bundle"), 2, "index.json", repr(name), "beside it")


BAD_JSON = {
    "nested too deeply": b"[" * 100_000,
    "a number of many digits": b'{"a": ' + b"1" * 5000 + b"}",
    "another encoding": '{"a": 1}'.encode("utf-16"),
    "a list": b"[1, 2]",
    "too large": b" " * (33 << 20),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_is_no_json_object_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(BAD_JSON[name])
    with pytest.raises(InputError, match=r"file\.json: "):
        read_json(tmp_path / "file.json")


ESCAPE = "\x1b]52;c;eA==\x07\x9b2J\u202e"


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_no_escape_sequence_of_a_file_reaches_the_terminal(
    arguments: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    write_source(checkpoint, {"kind": "gguf", "name": f"good{ESCAPE}", "[red]": "[bold]"})
    result = run("inspect", checkpoint, *arguments)
    assert result.exit_code == 0
    assert "good" in result.stdout
    assert "[red]" in result.stdout
    assert not any(char in result.output for char in "\x1b\x07\x9b\u202e")
    if arguments:
        assert json.loads(result.stdout)["source"]["name"] == f"good{ESCAPE}"


def test_no_escape_sequence_of_an_error_reaches_the_terminal(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": f"odd{ESCAPE}"}))
    moved = checkpoint.rename(tmp_path / "mod\x1b[2Jel")
    result = run("export", moved, tmp_path / "bundle")
    assert_refused(result, 2, "mod[2Jel", "odd")
    assert "\x1b" not in result.output
    assert "\x9b" not in result.output


def test_the_next_command_can_be_pasted_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "my model; rm -rf $HOME"
    result = run("attach", checkpoint, out)
    assert result.exit_code == 0
    command = result.stdout.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(command) == ["recycle-onnx", "train", str(out)]


def test_what_drives_a_terminal_is_taken_out() -> None:
    assert printable("a\x1b]52;c;eA==\x07\tb\x9b2J\r\nc\x7f é🙂") == "a]52;c;eA==\tb2J\nc é🙂"
    assert printable("safe\u202egnp.exe\ud800") == "safegnp.exe\N{REPLACEMENT CHARACTER}"
