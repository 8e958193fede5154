"""Bundles that many tests share, and a cache of their own."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.cli import quantization
from recycle_onnx.export import ExportOptions, Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.export.calibrated import texts
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers import one_thread, tiny  # noqa: F401 -- sessions have one thread from here on
from tests.helpers.cpu_time import CpuTime
from tests.helpers.full_texts import FullTexts

TESTS = Path(__file__).parent
SAMPLE = TESTS.parent / "samples" / "stories"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("providers", "where the conformance suite runs its graphs")
    group.addoption("--provider", default="cpu", help="All of it, and each half alone with the other on the CPU.")
    group.addoption(
        "--half-precision", choices=("fp16", "int8", "int4"), help="Activations and caches in float16, for GPUs."
    )
    group.addoption("--recycler-provider", help="The module's, and no other combination.")
    parser.addoption("--cpu-time", type=int, metavar="N", help="Tell CPU seconds: of all tests, and of the N largest.")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a folder that `-m` deselects whole: to collect it takes each worker ten seconds where torch is here."""
    deselected = collection_path.parent == TESTS and f"not {collection_path.name}" in config.option.markexpr
    return True if deselected else None


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start background jobs so, and children inherit it: tests of Ctrl-C would wait without end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _make_examples_the_same_everywhere()
    gc.disable()  # importing leaves little to collect, and a million objects to look through each time
    if config.getoption("--cpu-time") is not None:
        config.pluginmanager.register(CpuTime(config.getoption("--cpu-time")))


def _make_examples_the_same_everywhere() -> None:
    """Have hypothesis draw the same examples in every run, and never refuse one because a machine is slow or busy."""
    if find_spec("hypothesis") is None:  # suites in environments of their own need it in no test
        return
    from hypothesis import HealthCheck, settings

    ours = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("recycle-onnx", derandomize=True, deadline=None, suppress_health_check=ours)
    settings.load_profile("recycle-onnx")


def pytest_collection_finish() -> None:
    """Leave modules and test functions, which stay to the end, out of every later collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of it."""
    os.environ["RECYCLE_ONNX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["RECYCLE_ONNX_CACHE"]


@pytest.fixture(autouse=True)
def _no_tuning_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave scales untuned unless a test asks for it: whether torch is there must not decide how long a test takes."""
    monkeypatch.setattr(quantization, "is_installed", lambda _extra: False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", tiny.tiny_config())


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    export(tiny_checkpoint, tiny_checkpoint.parent / "bundle")
    return tiny_checkpoint.parent / "bundle"


@pytest.fixture(scope="session")
def calibration_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to calibrate the sample with, and no time spent on letting it write."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join((texts.FOLDER / f"{kind}.txt").read_text() for kind in ("prose", "facts")))
    return path


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bundle"
    export(SAMPLE, folder)
    return folder


@pytest.fixture(scope="session")
def int4_bundle(sample_bundle: Path) -> Path:
    """The sample in int4, compared with float32."""
    return _quantized(sample_bundle, 4)


@pytest.fixture(scope="session")
def int8_bundle(sample_bundle: Path) -> Path:
    """The sample in int8, compared with float32."""
    return _quantized(sample_bundle, 8)


@pytest.fixture(scope="session")
def int8_cache_bundle(sample_bundle: Path) -> Path:
    """The sample in int8, with keys and values in int8 too."""
    if reason := why_too_old("ort", "int8"):
        pytest.skip(reason)
    folder = sample_bundle.with_name("int8-cache")
    quantize_bundle(sample_bundle, folder, Quantization(8), QuantizeOptions(compare=False, kv="int8"))
    return folder


def _quantized(bundle: Path, bits: int) -> Path:
    folder = bundle.with_name(f"int{bits}")
    quantize_bundle(bundle, folder, Quantization(bits))
    return folder


@pytest.fixture(scope="session")
def standard_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with operators of ONNX only."""
    if reason := why_too_old("standard"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("standard") / "bundle"
    export(SAMPLE, folder, ExportOptions(flavour="standard"))
    return folder


@pytest.fixture(scope="session")
def sample_model(sample_bundle: Path) -> Model:
    return recycle_onnx.load(sample_bundle, threads=1)


@pytest.fixture(scope="session")
def full_texts(sample_model: Model) -> FullTexts:
    return FullTexts(sample_model)
