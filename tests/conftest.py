"""Bundles that many tests share, and a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.export import export
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.ort.providers import why_too_old
from tests.helpers import tiny
from tests.helpers.cpu_time import CpuTime
from tests.helpers.full_texts import FullTexts

SAMPLE = Path(__file__).parents[1] / "samples" / "stories"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("providers", "where the conformance suite runs its graphs")
    group.addoption("--provider", default="cpu", help="All of it, and each half alone with the other on the CPU.")
    group.addoption(
        "--half-precision", choices=("fp16", "int8", "int4"), help="Activations and caches in float16, for GPUs."
    )
    group.addoption("--recycler-provider", help="The module's, and no other combination.")
    parser.addoption("--cpu-time", type=int, metavar="N", help="Tell CPU seconds: of all tests, and of the N largest.")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu-time") is not None:
        config.pluginmanager.register(CpuTime(config.getoption("--cpu-time")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of it."""
    os.environ["RECYCLE_ONNX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["RECYCLE_ONNX_CACHE"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", tiny.tiny_config())


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    export(tiny_checkpoint, tiny_checkpoint.parent / "bundle")
    return tiny_checkpoint.parent / "bundle"


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bundle"
    export(SAMPLE, folder)
    return folder


@pytest.fixture(scope="session")
def standard_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with operators of ONNX only."""
    if reason := why_too_old("standard"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("standard") / "bundle"
    export(SAMPLE, folder, flavour="standard")
    return folder


@pytest.fixture(scope="session")
def sample_model(sample_bundle: Path) -> RecycleModel:
    return recycle_onnx.load(sample_bundle, threads=1)


@pytest.fixture(scope="session")
def full_texts(sample_model: RecycleModel) -> FullTexts:
    return FullTexts(sample_model)
