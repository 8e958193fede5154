"""`recycle-onnx quantize` and `export --precision`, as a user meets them."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers.command import assert_one_error, assert_refused, names, run
from tests.helpers.patience import PATIENCE
from tests.helpers.processes import start, start_signalled


def test_quantize_says_what_it_costs(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run("quantize", tiny_bundle, tmp_path / "small", "--block-size", 32)
    assert result.exit_code == 0
    assert "int4 in blocks of 32" in result.stdout
    assert "perplexity" in result.stdout
    table = run("quantize", tiny_bundle, tmp_path / "small", "--force", "--report")
    assert "same best token" in table.stdout
    described = json.loads(run("quantize", tiny_bundle, tmp_path / "small", "--force", "--json").stdout)
    assert described["quantization"]["bits"] == 4
    assert described["quantization"]["fidelity"]["epsilon"] >= 0


def test_a_quantized_bundle_says_so_wherever_it_is_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run("export", tiny_checkpoint, tmp_path / "small", "--precision", "int8").exit_code == 0
    assert "int8" in run("inspect", tmp_path / "small").stdout
    described = json.loads(run("inspect", tmp_path / "small", "--json").stdout)
    assert described["quantization"]["bits"] == 8
    verify = "exact" if recycle_onnx.load(tmp_path / "small").equal_runs else "within_rounding"
    for strategy, lossless in (("full", "exact"), ("verify", verify), ("alternate", "no")):
        out = run("generate", tmp_path / "small", "the cat", "-n", 4, "--strategy", strategy, "--json").stdout
        assert json.loads(out)["lossless"] == lossless


@pytest.mark.skipif(bool(why_too_old("ort", "int8")), reason="ONNX Runtime is too old")
def test_keys_and_values_in_int8_are_written_and_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run("export", tiny_checkpoint, tmp_path / "b", "--precision", "int8", "--kv", "int8").exit_code == 0
    assert "int8, 0.1 kB a token" in " ".join(run("inspect", tmp_path / "b").stdout.split())
    described = json.loads(run("inspect", tmp_path / "b", "--json").stdout)
    assert (described["kv"], described["kv_bytes_per_token"]) == ("int8", 2 * 16 * 3)
    assert described["contracts"]["full"]["inputs"]["past_key_values.0.key"].startswith("uint8")
    out = run("generate", tmp_path / "b", "the cat", "-n", 4, "--strategy", "verify", "--json").stdout
    assert json.loads(out)["lossless"] in ("exact", "within_rounding")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--flavour", "standard"), ("--kv int8", "'standard'", "--flavour ort")),
        (("--precision", "fp16"), ("--kv int8", "float16")),
        (("--precision", "int4", "--activations", "fp16"), ("--kv int8", "float16")),
    ],
)
def test_keys_and_values_in_int8_where_they_cannot_be_are_refused(
    options: tuple[str, ...], words: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert_refused(run("export", tiny_checkpoint, tmp_path / "b", "--kv", "int8", *options), 2, *words)
    assert_refused(run("export", tiny_checkpoint, tmp_path / "b", "--kv", "int4"), 2, "int8")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--bits", 3), ("bits is 3", "4, 8")),
        (("--bits", "few"), ("'few'", "--help")),
        (("--block-size", 48), ("block-size is 48", "16, 32, 64, 128, 256")),
        (("--method", "magic"), ("method is magic", "mse, rtn")),
        (("--keep", "lm_head,lm-head"), ("'lm-head'", "embed_tokens")),
        (("--text", "nowhere.txt"), ("nowhere.txt", "no such text file")),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: tuple[object, ...], words: tuple[str, ...], tiny_bundle: Path, tmp_path: Path
) -> None:
    assert_refused(run("quantize", tiny_bundle, tmp_path / "small", *options), 2, *words)
    assert names(tmp_path) == []


def test_what_is_no_float32_bundle_is_refused(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run("quantize", tiny_bundle, tmp_path / "small").exit_code == 0
    assert_refused(run("quantize", tmp_path / "small", tmp_path / "b"), 2, "is int4 already", "float32 bundle")
    assert_refused(run("quantize", tiny_checkpoint, tmp_path / "b"), 2, "not a bundle")
    assert_refused(run("quantize", tmp_path / "nowhere", tmp_path / "b"), 2, "no such folder")
    assert_refused(run("quantize", tiny_bundle, tmp_path / "small"), 2, "small exists", "--force")
    assert_refused(run("export", tiny_checkpoint, tmp_path / "small", "--precision", "int4"), 2, "small exists")
    assert_refused(run("export", tiny_checkpoint, tmp_path / "b", "--text", "t.txt"), 2, "--text", "--precision")
    assert names(tmp_path) == ["small"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals and sets POSIX limits")
@pytest.mark.parametrize(
    "arguments",
    [("quantize", "--method", "mse"), ("export", "--precision", "int4", "--method", "mse")],
    ids=["quantize", "export"],
)
@pytest.mark.parametrize("trouble", ["interrupted", "disk full"])
def test_trouble_leaves_nothing_behind(
    arguments: tuple[str, ...], trouble: str, sample_bundle: Path, tmp_path: Path
) -> None:
    import resource

    from tests.conftest import SAMPLE

    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    source = sample_bundle if arguments[0] == "quantize" else SAMPLE
    command = (arguments[0], source, tmp_path / "small", *arguments[1:])
    if trouble == "interrupted":
        process = start_signalled(signal.SIGINT, "quantizing model.onnx", *command)
    else:
        process = start(*command, limit=limit)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == (130 if trouble == "interrupted" else 1)
    assert stdout == b""
    errors = [line for line in stderr.decode().splitlines() if line.startswith("Error")]
    assert_one_error("\n".join(errors), "interrupted" if trouble == "interrupted" else "cannot write")
    assert b"Traceback" not in stderr
    assert names(tmp_path) == []
