"""`recycle-onnx quantize` and `export --precision`, as a user meets them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import recycle_onnx
from tests.helpers.command import assert_one_error, assert_refused, names, run
from tests.helpers.patience import PATIENCE


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

    def limit() -> None:
        if trouble == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    source = sample_bundle if arguments[0] == "quantize" else SAMPLE
    command = [sys.executable, "-m", "recycle_onnx", arguments[0], source, tmp_path / "small", *arguments[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit)
    assert process.stderr is not None
    if trouble == "interrupted":
        while process.stderr.readline().decode().strip() != "quantizing model.onnx":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == (130 if trouble == "interrupted" else 1)
    assert stdout == b""
    errors = [line for line in stderr.decode().splitlines() if line.startswith("Error")]
    assert_one_error("\n".join(errors), "interrupted" if trouble == "interrupted" else "cannot write")
    assert b"Traceback" not in stderr
    assert names(tmp_path) == []
