"""`recycle-onnx run`: any source is exported once, and then answers."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers import kills, tiny
from tests.helpers.command import assert_refused, names, run

MODULE = Path(__file__).parents[2] / "samples" / "smollm2-135m"
ANSWER = ("--prompt", "the cat", "-n", 4, "--threads", 1)
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(tmp_path: Path, cache: Path) -> Path:
    folder = tiny.write_base(tmp_path / "talker", tiny.tiny_config(context_length=200))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def answer(source: object, *options: object) -> dict[str, Any]:
    result = run("run", source, *ANSWER, *options, "--json")
    assert result.exit_code == 0, result.stderr
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


def leftovers(cache: Path) -> Iterator[Path]:
    """What is under the bundles of a cache and is no whole bundle."""
    for folder in cache.glob("bundles/*"):
        inside = list(folder.iterdir())
        if len(inside) != 1 or inside[0].name.startswith("."):
            yield folder


def test_a_hugging_face_folder_is_exported_once_in_int8_and_answers(base: Path, cache: Path) -> None:
    first = run("run", base, *ANSWER)
    assert first.exit_code == 0, first.stderr
    assert "note: exported to" in first.stderr
    second = answer(base)
    assert second["exported"] is False
    model = recycle_onnx.load(second["bundle"], threads=1)
    assert (model.name, model.bundle.manifest.precision) == ("talker", "int8")
    assert second["text"] == model.chat("the cat", max_new_tokens=4).text
    assert first.stdout == second["text"] + "\n"
    assert not list(leftovers(cache))


def test_what_was_exported_starts_without_the_exporter(base: Path, cache: Path) -> None:
    run("run", base, *ANSWER)
    code = (
        "import sys; from recycle_onnx.cli import main\n"
        f"main({['run', str(base), *map(str, ANSWER)]!r}, standalone_mode=False)\n"
        "print([name for name in ('onnx', 'onnxscript', 'recycle_onnx.export') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_a_checkpoint_and_a_bundle_run_too(tiny_checkpoint: Path, tiny_bundle: Path, cache: Path) -> None:
    assert recycle_onnx.load(answer(tiny_checkpoint)["bundle"], threads=1).strategies[-2:] == ("verify", "lookup")
    shown = answer(tiny_bundle)
    assert (shown["bundle"], shown["exported"]) == (str(tiny_bundle), False)
    assert len(names(cache / "bundles")) == 1


def test_a_gguf_file_runs_too(base: Path, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.helpers.gguf_writer import write_gguf

    file = write_gguf(tmp_path / "small.gguf", base)
    shown = answer(file)
    assert Path(shown["bundle"]).name == "small"
    assert answer(file)["exported"] is False
    moved = file.rename(tmp_path / "cache" / "small.gguf")
    again = answer(moved)
    assert (again["bundle"], again["exported"], again["text"]) == (shown["bundle"], False, shown["text"])


def test_another_content_or_precision_is_another_bundle(base: Path, cache: Path) -> None:
    places = [answer(base)["bundle"]]
    (base / "README.md").write_text("A card changes nothing.")
    assert answer(base)["bundle"] == places[0]
    (base / "chat_template.jinja").write_text(TEMPLATE.replace("\n", " "))
    changed = answer(base)
    assert changed["exported"]
    places += [changed["bundle"], answer(base, "--precision", "fp32")["bundle"]]
    assert len(set(places)) == 3
    assert recycle_onnx.load(places[2], threads=1).bundle.manifest.precision == "fp32"


@pytest.mark.skipif(bool(why_too_old("ort", "int8")), reason="ONNX Runtime is too old")
def test_keys_and_values_in_int8_are_another_bundle(base: Path, cache: Path) -> None:
    plain, small = answer(base), answer(base, "--kv", "int8")
    assert (small["exported"], answer(base, "--kv", "int8")["exported"]) == (True, False)
    kinds = [Bundle.open(Path(each["bundle"])).manifest.graphs["full"].cache_type for each in (plain, small)]
    assert kinds == [None, "int8"]


def test_a_module_beside_a_base_elsewhere_follows_that_base(base: Path, cache: Path, tmp_path: Path) -> None:
    assert run("attach", base, tmp_path / "model", "--reference").exit_code == 0
    first = answer(tmp_path / "model")
    assert answer(tmp_path / "model")["exported"] is False
    (base / "chat_template.jinja").write_text(TEMPLATE.replace("\n", " "))
    assert answer(tmp_path / "model")["bundle"] != first["bundle"]


def test_a_damaged_bundle_of_the_cache_is_made_anew(base: Path, cache: Path) -> None:
    first = answer(base)
    graph = Path(first["bundle"]) / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-9])
    again = run("run", base, *ANSWER, "--json")
    assert "note: the cached bundle is made anew" in again.stderr
    shown = json.loads(again.stdout)
    assert (shown["exported"], shown["text"]) == (True, first["text"])
    Bundle.open(Path(shown["bundle"]), verify=True)
    assert answer(base, "--force")["exported"]


def test_without_a_prompt_it_is_a_chat(base: Path, cache: Path) -> None:
    options = ("-n", 4, "--threads", 1, "--system", "be kind")
    shown = run("run", base, *options, stdin=b"the cat\nthe dog\n")
    assert shown.exit_code == 0, shown.stderr
    model = recycle_onnx.load(next(cache.glob("bundles/*/*")), threads=1)
    chat = model.conversation("be kind")
    assert shown.stdout == "".join(
        chat.ask(text, max_new_tokens=4).text.lstrip() + "\n" for text in ("the cat", "the dog")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_a_kill_leaves_no_half_export(share: float, base: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(base, place / "model")
    command = ("run", place / "model", *ANSWER)
    whole = kills.run(place, 0, *command)
    assert whole.returncode == 0, whole.output
    looks = int(whole.output.split()[-2])
    shutil.rmtree(place / "cache")
    killed = kills.run(place, max(1, int(share * looks)), *command)
    assert killed.returncode == -9
    for bundle in place.glob("cache/bundles/*/[!.]*"):
        Bundle.open(bundle, verify=True)
    again = kills.run(place, 0, *command)
    assert again.returncode == 0, again.output
    assert not list(leftovers(place / "cache"))


BAD: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "no such source": (("run", "nowhere"), ("nowhere", "no such folder", "a GGUF file", "a hub id (org/name)")),
    "a file of a bundle": (("run", "BUNDLE FILE"), ("model.onnx: a file of a folder", "give the folder, ")),
    "a file of a base": (("run", "BASE FILE"), ("model.safetensors: a file of a folder", "give the folder, ")),
    "a module alone": (("run", MODULE), ("a module without its base", "recycle-onnx attach BASE CHECKPOINT --module")),
    "a file that is no model": (("run", __file__), ("not a GGUF",)),
    "an empty prompt": (("run", "BASE", "--prompt", ""), ("the prompt is empty",)),
    "JSON of a chat": (("run", "BASE", "--json"), ("--json", "--prompt")),
    "a precision of a bundle": (("run", "BUNDLE", "--precision", "int4"), ("is a bundle", "--precision")),
    "keys and values of a bundle": (("run", "BUNDLE", "--kv", "int8"), ("is a bundle", "--kv")),
    "integers beside float16": (("run", "BASE", "--kv", "int8", "--precision", "fp16"), ("--kv int8", "float16")),
    "a revision of a folder": (("run", "BASE", "--revision", "main"), ("--revision goes with a hub id",)),
    "a setting out of range": (("run", "BASE", "--prompt", "hi", "--temperature", -1), ("temperature is -1",)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str, base: Path, tiny_bundle: Path, cache: Path) -> None:
    arguments, words = BAD[name]
    files = {"BASE FILE": base / "model.safetensors", "BUNDLE FILE": tiny_bundle / "model.onnx"}
    known = {"BASE": base, "BUNDLE": tiny_bundle, **files}
    result = run(*(known.get(str(argument), argument) for argument in arguments))
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(errors), result.stdout) == (2, 1, "")
    for word in words:
        assert word in errors[0]
    assert not list(leftovers(cache))


def test_a_source_that_cannot_be_exported_leaves_nothing(base: Path, cache: Path) -> None:
    (base / "model.safetensors").write_bytes(b"not safetensors")
    assert_refused(run("run", base, *ANSWER), 2, "model.safetensors")
    assert not list(cache.glob("bundles/*"))


def test_a_cache_that_cannot_be_written_is_a_failure(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "file"))
    assert_refused(run("run", base, *ANSWER), 1, "cannot write there", "RECYCLE_ONNX_CACHE names another folder")


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_other_commands_say_what_to_do_with_what_is_no_bundle(
    verb: str, base: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a model.gguf").write_bytes(b"GGUF")
    for path, kind in (
        (tmp_path / "a model.gguf", "a GGUF file"), (base, "a Hugging Face folder"), (tiny_checkpoint, "a checkpoint")
    ):  # fmt: skip
        run_it = f"`recycle-onnx run {shlex.quote(str(path))}` exports it once and chats"
        assert_refused(run(verb, path, *(["hi"] if verb == "generate" else [])), 2, str(path), kind, run_it)
        with pytest.raises(InputError, match=kind):
            recycle_onnx.load(path)
    with pytest.raises(InputError, match="a module without its base, not a bundle; join them: recycle-onnx attach"):
        recycle_onnx.load(MODULE)
    with pytest.raises(InputError, match=f"a file of a bundle; give its folder, {tiny_bundle}"):
        recycle_onnx.load(tiny_bundle / "model.onnx")
