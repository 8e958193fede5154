"""`recycle-onnx doctor` finds nothing in a sound bundle, and three planted faults in others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from recycle_onnx.bundle import describe_files
from recycle_onnx.doctor import assignment
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from tests.doctor.conftest import _quick
from tests.helpers.command import assert_refused, run
from tests.helpers.windows import write_checkpoint

__all__ = ["_quick"]
pytestmark = pytest.mark.usefixtures("_quick")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def examine(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = run("doctor", *arguments, "--json")
    assert result.stdout, (result.stderr, result.exception)
    return result.exit_code, json.loads(result.stdout)


def broken(found: dict[str, Any]) -> list[str]:
    return [finding["what"] for finding in found["findings"] if finding["level"] == "broken"]


def test_a_sound_bundle(bundle: Path) -> None:
    code, found = examine(bundle, "--threads", 1, "--provider", "cpu")
    assert (code, broken(found), found["broken"]) == (0, [], False)
    assert found["provider"] == "cpu"
    assert found["bundle"]["whole"]
    assert set(found["bundle"]["self_test"]["differences"]) == {"full", "recycler"}
    assert set(found["bundle"]["assignments"]) == ({"full", "recycler"} if assignment.IS_TOLD else set())
    assert found["bandwidth"]["one_thread_gb_s"] > 0


def test_what_caches_take_in_a_server_is_said_where_it_is_more(bundle: Path, tmp_path: Path) -> None:
    export(write_checkpoint(tmp_path / "model", context=8192), tmp_path / "windows")
    said = "in a server that saves prompts"
    shown = run("doctor", tmp_path / "windows", "--threads", 1, "--provider", "cpu").output
    assert f"{4 * 8192 * 128 / 1e6:.1f} MB {said}" in " ".join(shown.split())
    assert said not in run("doctor", bundle, "--threads", 1, "--provider", "cpu").output


def test_a_sound_bundle_of_the_standard_flavour(standard_bundle: Path) -> None:
    code, found = examine(standard_bundle, "--threads", 1, "--provider", "cpu")
    assert (code, broken(found), found["bundle"]["flavour"]) == (0, [], "standard")
    assert max(found["bundle"]["self_test"]["differences"].values()) < 1e-4
    [operators] = found["bundle"]["assignments"]["full"]["nodes"].values()
    assert operators["Attention"] > 1
    assert not [name for name in operators if "GroupQueryAttention" in name]


def test_options_for_a_module_without_its_provider_are_refused(bundle: Path) -> None:
    result = run("doctor", bundle, "--recycler-provider-option", "device_id=0")
    assert_refused(result, 2, "name it too (--recycler-provider)")


def alter_weights(bundle: Path) -> tuple[str, ...]:
    with (bundle / "recycler.onnx.data").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    return ("recycler.onnx.data", "SHA-256")


def claim_another_flavour(bundle: Path) -> tuple[str, ...]:
    write_json(bundle / "recycle.json", read_json(bundle / "recycle.json") | {"flavour": "abacus"})
    return ("'cpu'", "'abacus'")


def need_a_kernel_that_the_cpu_lacks(bundle: Path) -> tuple[str, ...]:
    """BiasAdd of com.microsoft has kernels for GPUs only."""
    path = bundle / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "without_bias"
    vocab_size = read_json(bundle / "recycle.json")["graphs"]["full"]["vocab_size"]
    model.graph.initializer.append(helper.make_tensor("bias", TensorProto.FLOAT, [vocab_size], [0.0] * vocab_size))
    inputs = ["without_bias", "bias", "without_bias"]
    model.graph.node.append(helper.make_node("BiasAdd", inputs, ["logits"], domain="com.microsoft"))
    onnx.save(model, path)
    manifest = read_json(bundle / "recycle.json")
    manifest["files"]["model.onnx"] = vars(describe_files(bundle, ["model.onnx"])["model.onnx"])
    write_json(bundle / "recycle.json", manifest)
    return ("'cpu' cannot run", "BiasAdd")


@pytest.mark.parametrize("plant", [alter_weights, claim_another_flavour, need_a_kernel_that_the_cpu_lacks])
def test_a_fault_on_disk_is_found(plant: Callable[[Path], tuple[str, ...]], bundle: Path) -> None:
    words = plant(bundle)
    code, found = examine(bundle, "--threads", 1, "--provider", "cpu")
    (what,) = broken(found)
    assert (code, found["bundle"]["self_test"]) == (1, None)
    for word in words:
        assert word in what


def test_spinning_that_an_application_forces_on_is_found(bundle: Path) -> None:
    awake = "session.intra_op.spin_duration_us=100000"
    forced = ("--session-config", "session.force_spinning_stop=0", "--session-config", awake)
    code, found = examine(bundle, "--threads", 2, "--provider", "cpu", *forced)
    (what,) = broken(found)
    assert code == 1
    assert "spin between runs" in what
    assert found["bundle"]["spinning"]["halves"] == ["full", "recycler"]
    assert found["bundle"]["self_test"] is not None
    assert examine(bundle, "--threads", 1, "--provider", "cpu", *forced)[0] == 0


def test_without_a_terminal_lines_are_plain_and_as_long_as_they_are() -> None:
    result = run("doctor", "--threads", 1)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "versions"
    assert f"  Python: CPython {sys.version.split()[0]}" in lines
    assert any(line.startswith("  cuda: ") for line in lines)
    assert all(character.isascii() or character in "…" for character in result.stdout)


def test_a_terminal_gets_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich believe that it writes to one
    result = run("doctor", "--threads", 1)
    assert "│ Python" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-folder",), ("no-such-folder", "recycle-onnx export")),
        (("--provider", "abacus"), ("'abacus'", "cpu")),
        (("--threads", 0), ("threads is 0",)),
        (("--session-config", "fast"), ("'fast'", "session.force_spinning_stop=1")),
        (("--threads", "two"), ("two",)),
    ],
)
def test_a_mistake_is_refused_in_one_line(
    arguments: tuple[object, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert_refused(run("doctor", *arguments), 2, *words)


def test_a_folder_that_is_no_bundle_is_a_mistake(tmp_path: Path) -> None:
    assert_refused(run("doctor", tmp_path), 2, "not a bundle")
