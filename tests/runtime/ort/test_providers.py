"""Providers: the table, what is here, what is refused and how; both halves apart through the same code."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import recycle_onnx
from recycle_onnx.bundle import Manifest
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort import providers
from recycle_onnx.runtime.ort.placing import Placing
from recycle_onnx.runtime.ort.provider_table import PREFERRED, PROVIDERS, Provider
from recycle_onnx.runtime.ort.providers import Placement, choose, known, place, register_library, why_slow, why_unfit
from recycle_onnx.runtime.ort.renamed import renamed
from recycle_onnx.runtime.ort.sessions import open_session
from tests.helpers.command import assert_refused, run
from tests.helpers.skips import needs_standard

PROMPT = "the cat sat on"
ABSENT = [name for name in PROVIDERS if name != "cpu" and PROVIDERS[name].ort_name not in ort.get_available_providers()]


def test_keywords_of_placing_are_those_of_load() -> None:
    parameters = inspect.signature(recycle_onnx.load).parameters
    annotations = {name: parameters[name].annotation for name in Placing.__annotations__}
    assert annotations == {name: kind.__forward_arg__ for name, kind in Placing.__annotations__.items()}
    others = set(parameters) - set(annotations)
    assert others == {"path", "threads", "fixed_threads", "verify", "prepacked", "progress"}


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Manifest.read(tiny_bundle / "recycle.json")


def half_precision(manifest: Manifest) -> Manifest:
    graphs = {kind: replace(spec, float_type="float16") for kind, spec in manifest.graphs.items()}
    return replace(manifest, precision="fp16", graphs=graphs)


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_table_names_providers_that_onnxruntime_knows(name: str) -> None:
    provider = known(name)
    assert provider.name == name
    assert provider.ort_name in ort.get_all_providers()
    assert set(provider.flavours) <= {"ort", "standard"}
    assert set(provider.behind) <= PROVIDERS.keys()


def test_auto_ends_with_what_is_always_here() -> None:
    assert PREFERRED[-1] == "cpu"
    assert set(PREFERRED) <= PROVIDERS.keys()


@pytest.mark.parametrize("name", ABSENT)
def test_a_provider_that_is_not_here_is_refused_with_its_package(name: str, tiny_bundle: Path) -> None:
    if devices := providers.devices(known(name)):
        pytest.skip(f"its plug-in is here and finds {len(devices)} device(s)")
    with pytest.raises(InputError, match=f"'{name}'.*{known(name).package}|'{name}' cannot run here") as refused:
        recycle_onnx.load(tiny_bundle, provider=name)
    assert "\n" not in str(refused.value)


def test_the_module_alone_may_be_refused_too(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="'qnn'"):
        recycle_onnx.load(tiny_bundle, recycler_provider="qnn")


@needs_standard
def test_a_flavour_that_a_provider_cannot_run_is_refused(manifest: Manifest) -> None:
    for name in ("coreml", "tensorrt", "qnn"):
        reason = why_unfit(known(name), manifest)
        assert reason is not None
        assert "--flavour standard" in reason
        assert why_unfit(known(name), replace(manifest, flavour="standard")) is None
    for name in ("cpu", "cuda", "openvino", "webgpu", "dml"):
        assert why_unfit(known(name), manifest) is None
    reason = why_unfit(known("openvino"), replace(manifest, flavour="standard"))
    assert reason is not None
    assert "--flavour ort" in reason


def test_a_flavour_that_needs_a_newer_onnxruntime_is_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "__version__", "1.25.1")
    reason = why_unfit(known("cpu"), replace(manifest, flavour="standard"))
    assert reason is not None
    assert reason.startswith("the flavour 'standard' needs ONNX Runtime 1.26 or newer, and 1.25.1 is installed; ")
    assert why_unfit(known("cpu"), manifest) is None
    monkeypatch.setattr(ort, "__version__", "1.26.0")
    assert why_unfit(known("cpu"), replace(manifest, flavour="standard")) is None


def test_attention_that_a_provider_leaves_to_the_cpu_is_said(manifest: Manifest) -> None:
    slow = why_slow(known("cuda"), manifest)
    assert slow is not None
    assert "--precision fp16" in slow
    assert why_slow(known("cuda"), half_precision(manifest)) is None
    assert why_slow(known("cuda"), replace(manifest, flavour="standard")) is None
    assert why_slow(known("webgpu"), manifest) is None
    slow = why_slow(known("webgpu"), replace(manifest, flavour="standard"))
    assert slow is not None
    assert "--flavour ort" in slow


def test_auto_takes_the_first_that_is_here_and_fits(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto", manifest).name in PREFERRED
    monkeypatch.setattr(ort, "get_available_providers", lambda: [p.ort_name for p in PROVIDERS.values()])
    assert choose("auto", half_precision(manifest)).name == "cuda"
    assert choose("auto", manifest).name == "dml"  # CUDA would leave the attention of float32 to the CPU
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "get_ep_devices", list)
    assert choose("auto", manifest).name == "cpu"


def test_auto_refuses_a_flavour_that_nothing_here_can_run(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="cannot run the flavour 'next'"):
        choose("auto", replace(manifest, flavour="next"))


def test_what_auto_chose_can_be_read(tiny_bundle: Path) -> None:
    model = recycle_onnx.load(tiny_bundle, provider="auto")
    assert model.provider == model.recycler_provider == model.providers
    assert model.provider in PREFERRED


def test_options_that_would_be_ignored_are_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="'cpu' has no option 'device_id'; expected: none at all"):
        place("cpu", {"device_id": "0"}, manifest)
    for name in ("webgpu", "dml"):
        assert known(name).options


def test_options_become_what_onnxruntime_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [p.ort_name for p in PROVIDERS.values()])

    def given(name: str, **options: str) -> list[object]:
        return Placement(known(name), options).attach(ort.SessionOptions(), 3)

    assert given("cpu") == ["CPUExecutionProvider"]
    assert given("cuda", device_id="1") == [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]
    assert given("tensorrt") == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert given("openvino") == [("OpenVINOExecutionProvider", {"num_of_threads": "3"}), "CPUExecutionProvider"]
    assert given("openvino", num_of_threads="1")[0] == ("OpenVINOExecutionProvider", {"num_of_threads": "1"})


def test_a_provider_that_does_not_start_is_told_from_one_that_runs(
    tiny_bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA without its libraries: ONNX Runtime gives a session on the CPU and no error."""
    everything = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    if known("cuda").ort_name in ort.get_available_providers():
        pytest.skip("CUDA is here")
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(RecycleError, match="'cuda' did not start; it needs an NVIDIA GPU"),
    ):
        open_session(tiny_bundle / "model.onnx", manifest.graphs["full"], Placement(known("cuda")), 1)


@pytest.mark.parametrize("content", [None, b"not a library"], ids=["missing", "damaged"])
def test_a_library_that_is_no_plug_in_is_refused(content: bytes | None, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "libplugin.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"libplugin\.so: (no such file|not a plug-in)") as refused:
        recycle_onnx.load(tiny_bundle, provider="mine", provider_libraries={"mine": path})
    assert "\n" not in str(refused.value)


def test_an_installed_plug_in_is_used_and_its_absence_of_devices_said(tiny_bundle: Path) -> None:
    found = [p for p in PROVIDERS.values() if p.module and importlib.util.find_spec(p.module)]
    if not found:
        pytest.skip("no plug-in package is installed (onnxruntime-ep-openvino, onnxruntime-ep-webgpu, onnxruntime-qnn)")
    for provider in found:
        reason = providers.why_missing(provider)
        assert (reason is None) == bool(providers.devices(provider) or providers.is_built_in(provider))
        assert reason is None or "finds no device" in reason or "does not load" in reason


def test_a_library_may_bring_a_provider_of_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registered: list[tuple[str, str]] = []

    class Device:
        ep_name = "OurOwnExecutionProvider"

    monkeypatch.setattr(ort, "get_ep_devices", lambda: [Device()] if registered else [])
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *given: registered.append(given))
    monkeypatch.setattr(providers, "_registered", {})
    path = tmp_path / "libours.so"
    path.touch()
    assert register_library("ours", path) == known("ours") == Provider("ours", "OurOwnExecutionProvider", "libours.so")
    with pytest.raises(InputError, match="finds no device here for provider 'webgpu'"):
        register_library("webgpu", path)


def test_halves_on_two_providers_make_the_same_text(tiny_bundle: Path) -> None:
    """CPU and CPU, by the way that two devices take."""
    apart = recycle_onnx.load(tiny_bundle, provider="cpu", recycler_provider="cpu")
    together = recycle_onnx.load(tiny_bundle)
    assert apart.providers == together.providers == "cpu"
    for strategy in ("full", "alternate", "verify"):
        made = apart.generate(PROMPT, strategy=strategy, max_new_tokens=12)
        assert made.tokens == together.generate(PROMPT, strategy=strategy, max_new_tokens=12).tokens


def test_states_that_are_handed_over_decide_the_text(tiny_bundle: Path) -> None:
    """The negative: a module that gets other states proposes otherwise."""
    model = recycle_onnx.load(tiny_bundle)
    expected = model.generate(PROMPT, strategy="alternate", max_new_tokens=12).tokens
    generation = model.stream(PROMPT, strategy="alternate", max_new_tokens=12)
    next(generation)
    states = generation.decoder.full.states
    array = states._array
    states.on_host = lambda: np.zeros_like(array)  # type: ignore[method-assign]
    assert generation.tokens + [token.id for token in generation] != expected


def test_where_caches_lie_can_be_read(sample_model: Model) -> None:
    generation = sample_model.stream(PROMPT, strategy="verify", max_new_tokens=3)
    list(generation)
    cache = generation.decoder.full.cache
    assert cache.devices == dict.fromkeys(sample_model.bundle.manifest.graphs["full"].past_names(), "cpu")
    assert all(
        np.shares_memory(array, buffer.value.numpy()) for array, buffer in zip(cache.arrays, cache.buffers, strict=True)
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_too_little_memory_is_one_line(sample_bundle: Path) -> None:
    code = f"""
import resource, recycle_onnx
from pathlib import Path
from recycle_onnx.bundle import Bundle
from recycle_onnx.runtime.ort.sessions import open_original
bundle = Bundle.open(Path({str(sample_bundle)!r}))
open_original(bundle, "recycler", "cpu", 1)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**22,) * 2)
try:
    open_original(bundle, "full", "cpu", 1)
except recycle_onnx.errors.RecycleError as error:
    print(error)
"""
    # glibc reserves 64 MB of addresses for each thread's own heap: a graph would fit into one that is there already
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=one_heap)
    assert "too little memory on provider 'cpu' for a graph of 16 MB" in done.stdout
    assert "--precision int4" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_operators_are_renamed_and_nothing_else_is(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "model.onnx").read_bytes()
    assert renamed(content, {}) == content
    names = {"RMSNormalization": "SimplifiedLayerNormalization"}
    before, after = onnx.load_from_string(content), onnx.load_from_string(renamed(content, names))
    assert [node.op_type for node in after.graph.node] != [node.op_type for node in before.graph.node]
    for node in before.graph.node:
        node.op_type = names.get(node.op_type, node.op_type)
    assert after == before


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an option without a value": (
        ("--provider-option", "device_id"),
        ("provider-option", "'device_id'", "device_id=0"),
    ),
    "an option that the cpu has not": (("--provider-option", "a=1"), ("'cpu'", "'a'", "none at all")),
    "options for nobody": (("--recycler-provider-option", "a=1"), ("--recycler-provider",)),
    "a library without a file": (("--provider-library", "mine=missing.so"), ("missing.so", "no such file", "'mine'")),
    "an unknown provider for the module": (("--recycler-provider", "quantum"), ("'quantum'", "openvino", "auto")),
    "a provider that is not here": (("--provider", "coreml"), ("'coreml'",)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", ["generate", "bench", "eval", "calibrate", "serve"])
def test_commands_refuse_in_one_line(command: str, name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments, words = REFUSED[name]
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat")
    more = {"generate": ("the",), "eval": ("--perplexity", text), "serve": ("--port", 0)}.get(command, ())
    assert_refused(run(command, tiny_bundle, *more, *arguments), 2, *words)


def test_prepacked_weights_are_for_the_processor(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["WebGpuExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match="provider 'webgpu' lays them out itself"):
        recycle_onnx.load(tiny_bundle, provider="webgpu", prepacked=True)


def test_a_bundle_is_opened_before_providers_are_judged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        recycle_onnx.load(tmp_path / "missing", provider="qnn")
