"""`bench`: what it measures has the promised form, and its arithmetic is right. (How fast anything is, is no test.)"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from recycle_onnx.bench.bundles import random_bundle
from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bench.memory_parts import MemoryParts
from recycle_onnx.bench.run import Measurement, Options, bench, verdict
from recycle_onnx.bench.shapes import SHAPES, shape, write_random_base
from recycle_onnx.bench.steps import predicted_speedup
from recycle_onnx.bundle import Bundle
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.errors import InputError
from tests.helpers import tiny
from tests.helpers.command import assert_refused, run

STEPS = {"full_1": 30.0, "full_2": 31.5, "full_3": 41.0, "full_4": 49.0, "full_5": 58.0}
WITH_MODULE = {**STEPS, "recycle_1": 3.0, "recycle_2": 3.3}
SMALL = ("--context", 8, "--new-tokens", 6, "--repeat", 2)


def test_json_has_the_promised_form(tiny_bundle: Path) -> None:
    result = run("bench", tiny_bundle, *SMALL, "--threads", "1,2", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"machine", "results", "verdict"}
    assert set(found["machine"]) == {"cpu", "threads", "onnxruntime", "read_bandwidth_gb_s"}
    assert {(r["strategy"], r["threads"]) for r in found["results"]} == {
        (name, threads) for name in ("full", "alternate", "verify", "lookup", "auto") for threads in (1, 2)
    }
    for r in found["results"]:
        assert set(r["step_ms"]) == {*STEPS, "recycle_1", "recycle_2"}
        assert r["interval"][0] <= r["decode_tokens_per_second"] <= r["interval"][1]
        assert r["context"] == 8
        assert r["tokens_per_full_run"] >= 1
        assert set(r["memory"]) == {"weights_bytes", "cache_bytes", "rest_bytes"}
        if r["strategy"] == "full":
            assert (r["measured_speedup"], r["predicted_speedup"]) == (1.0, 1.0)


def test_memory_is_told_by_part(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    parts = MemoryParts.of(manifest, 10)
    files = [tiny_bundle / name for name in ("model.onnx.data", "recycler.onnx.data")]
    assert parts.weights_bytes == sum(path.stat().st_size for path in files)
    assert parts.cache_bytes == 10 * (2 + 1) * 2 * 1 * 16 * 4, (
        "three layers' keys and values of one head of 16, float32"
    )
    assert parts.rest_bytes > 10 * parts.weights_bytes, "Python and ONNX Runtime are larger than a tiny model"


@pytest.mark.parametrize("contexts", ["8", "8,12"], ids=["bars of one context", "lines over several"])
def test_plot_writes_a_picture(contexts: str, tiny_bundle: Path, tmp_path: Path) -> None:
    few = (*SMALL, "--context", contexts, "--strategies", "alternate,lookup")
    result = run("bench", tiny_bundle, *few, "--threads", "1,2", "--plot", tmp_path / "bench.png", "--json")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(result.stdout)["results"]


def test_a_plot_that_cannot_be_written_is_refused_before_measuring(tiny_bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("bench", tiny_bundle, "--plot", tmp_path / "bench.doc"), 2, "bench.doc", "png")
    assert_refused(run("bench", tiny_bundle, "--plot", tmp_path / "none" / "bench.png"), 2, "no such folder")


def test_people_get_a_table_and_a_verdict(tiny_bundle: Path) -> None:
    out = run("bench", tiny_bundle, *SMALL, "--strategies", "verify").stdout
    assert "threads default, context 8" in out
    assert "steps in ms" in out
    assert "full" in out.splitlines()[-1]


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("chain", [1, 2])
def test_forced_acceptance_is_what_was_asked_for(rate: float, chain: int, tmp_path: Path) -> None:
    from recycle_onnx.export import export

    export(tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(context_length=512)), tmp_path / "bundle")
    options = Options(("verify",), (8,), new_tokens=400, repeat=2, chain=chain, forced_acceptance=rate)
    full, verify = bench(tmp_path / "bundle", options)
    assert full.label is None
    assert verify.label == f"acceptance forced to {rate}"
    expected = {1: 1 + rate, 2: 1 + rate + rate**2}[chain]
    assert verify.tokens_per_full_run == pytest.approx(expected, abs=0.15)


@given(chain=st.integers(1, 4), rate=st.floats(0, 1))
def test_a_prediction_is_tokens_over_time(chain: int, rate: float) -> None:
    tokens = sum(rate**place for place in range(chain + 1))
    found = predicted_speedup("verify", WITH_MODULE, chain, rate, tokens)
    assert found is not None
    slowest = (WITH_MODULE[f"full_{chain + 1}"] + 3.3 * chain) / 30
    fastest = (WITH_MODULE[f"full_{chain + 1}"] + 3.0 * chain) / 30
    assert tokens / slowest - 1e-9 <= found <= tokens / fastest + 1e-9


def test_predictions_for_other_strategies() -> None:
    assert predicted_speedup("full", STEPS, 1, None, 1.0) == 1.0
    assert predicted_speedup("alternate", WITH_MODULE, 1, None, 2.0) == pytest.approx(60 / 34.8)
    assert predicted_speedup("auto", WITH_MODULE, 1, 0.9, 2.0) is None


def measurement(strategy: str, speedup: float, low: float) -> Measurement:
    return Measurement(
        strategy, None, 128, "int4", 30.0 * speedup, (29.0, 31.0), 200.0, 0.5, None, 1.0, WITH_MODULE, None,
        speedup, (low, speedup + 0.05), 20.0, MemoryParts(2, 1, 3), None, 1.0, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([("auto", 1.47, 1.4), ("verify", 1.4, 1.3)], ("auto is 1.47x full", "leave it on")),
        ([("auto", 1.2, 1.1), ("verify", 1.4, 1.3)], ("verify is 1.40x full",)),
        ([("alternate", 1.9, 1.8)], ("nothing lossless is surely faster", "alternate is 1.90x", "a text of its own")),
        ([("auto", 1.1, 0.95)], ("nothing lossless is surely faster",)),
    ],
)
def test_the_verdict_goes_by_what_is_sure_and_lossless(
    found: list[tuple[str, float, float]], words: tuple[str, ...]
) -> None:
    line = verdict([measurement("full", 1.0, 1.0), *(measurement(*each) for each in found)])
    for word in words:
        assert word in line


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_sound_config(name: str) -> None:
    config = shape(name)
    parameters = sum(int(np.prod(sizes)) for sizes in config.tensor_shapes().values())
    millions = {"tinyllama-1.1b": 1100, "smollm2-135m": 135, "qwen3-0.6b": 596, "llama3.2-1b": 1236}[name]
    assert parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_random_layers_differ(tmp_path: Path) -> None:
    write_random_base(tmp_path / "base", tiny.tiny_config())
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    first, second = (tensors[f"model.layers.{index}.mlp.up_proj.weight"] for index in (0, 1))
    assert not np.array_equal(first, second)
    with Checkpoint.open(tmp_path / "base"):
        pass


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_a_random_bundle_is_made_once(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    monkeypatch.setitem(SHAPES, "tiny", tiny.tiny_config(vocab_size=64))
    first = random_bundle("tiny", precision, 2, 32)
    stamp = (first / "recycle.json").stat().st_mtime_ns
    assert Bundle.open(first, verify=True).manifest.precision == precision
    assert random_bundle("tiny", precision, 2, 32) == first
    assert (first / "recycle.json").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == [first.name]
    drafted = random_bundle("tiny", precision, 2, 32, 32)
    assert Bundle.open(drafted).manifest.draft_vocabulary == list(range(32))
    standard = random_bundle("tiny", precision, 2, 32, flavour="standard")
    assert Bundle.open(standard).manifest.flavour == "standard"
    half = random_bundle("tiny", precision, 2, 32, activations="fp16")
    assert (half == first) == (precision != "int4")
    result = run("bench", "--shape", "tiny", "--precision", precision, "--block-size", 32, *SMALL, "--json")
    assert "random weights" in json.loads(result.stdout)["label"]


def test_the_machine_is_described() -> None:
    found = Conditions.here()
    assert found.cpu
    assert found.threads >= 1
    assert 1 < found.read_bandwidth_gb_s < 2000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "gpt-5"), ("'gpt-5'", "tinyllama-1.1b")),
        (("--shape", "smollm2-135m", "--precision", "int2"), ("'int2'", "fp32, fp16, int8, int4")),
        (("--shape", "smollm2-135m", "--flavour", "vanilla"), ("'vanilla'", "ort, standard")),
        ((), ("expected a BUNDLE",)),
        (("BUNDLE", "--shape", "smollm2-135m"), ("not both",)),
        (("BUNDLE", "--context", "8,many"), ("--context", "8,many")),
        (("BUNDLE", "--context", "4000"), ("context 4000", "do not fit")),
        (("BUNDLE", "--repeat", 1), ("repeat is 1",)),
        (("BUNDLE", "--new-tokens", 0), ("new-tokens is 0",)),
        (("BUNDLE", "--strategies", "magic", "--context", "8", "--new-tokens", 4), ("'magic'",)),
        (("BUNDLE", "--threads", "0", "--context", "8"), ("threads is 0",)),
        (("BUNDLE", "--forced-acceptance", 1.5), ("forced-acceptance is 1.5",)),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: tuple[object, ...], words: tuple[str, ...], tiny_bundle: Path
) -> None:
    given_ = [tiny_bundle if argument == "BUNDLE" else argument for argument in arguments]
    result = run("bench", *given_)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]


def test_a_bundle_without_a_module_is_measured_too(tmp_path: Path) -> None:
    from recycle_onnx.export import export

    export(tiny.write_base(tmp_path / "base", tiny.tiny_config()), tmp_path / "bundle")
    found = bench(tmp_path / "bundle", Options(contexts=(8,), new_tokens=6, repeat=2))
    assert [r.strategy for r in found] == ["full", "lookup", "auto"]
    with pytest.raises(InputError, match="needs a recyclable module"):
        bench(tmp_path / "bundle", Options(("verify",), (8,), new_tokens=6, repeat=2))
    assert_refused(run("bench", tmp_path / "nowhere"), 2, "no such folder")
