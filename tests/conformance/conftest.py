"""Models on the providers that `--provider` and `--recycler-provider` name."""

from __future__ import annotations

from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, export
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import known, why_missing
from tests.helpers import tiny

HALF_PRECISION = {
    "fp16": HalfPrecision(),
    "int8": Quantization(8, activations="fp16"),
    "int4": Quantization(4, activations="fp16"),
}

Place = tuple[str, str]
"""Provider of the full model and of the module."""


def places(config: pytest.Config) -> list[Place]:
    provider, recycler = config.getoption("--provider"), config.getoption("--recycler-provider")
    if recycler:
        return [(provider, recycler)]
    return list(dict.fromkeys([(provider, provider), (provider, "cpu"), ("cpu", provider)]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        found = places(metafunc.config)
        metafunc.parametrize("place", found, ids=["+".join(dict.fromkeys(place)) for place in found], scope="session")


@pytest.fixture(scope="session")
def here(place: Place) -> Place:
    """The place, if its providers are here."""
    for name in place:
        if reason := why_missing(known(name)):
            pytest.skip(reason)
    return place


@pytest.fixture(scope="session", params=["ort", "standard"])
def placed_model(request: pytest.FixtureRequest, here: Place) -> Model:
    flavour: str = request.param
    for name in here:  # before the export, whose check on the CPU needs an ONNX Runtime that has the flavour
        if flavour not in known(name).flavours:
            pytest.skip(f"{name} cannot run the flavour {flavour}")
    bundle: Path = request.getfixturevalue({"ort": "sample_bundle", "standard": "standard_bundle"}[flavour])
    return recycle_onnx.load(bundle, provider=here[0], recycler_provider=here[1])


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A random model with room for long texts, that ends none."""
    folder = tmp_path_factory.mktemp("small")
    tiny.write_checkpoint(folder / "model", tiny.tiny_config(context_length=256), seed=2)
    (folder / "model" / "generation_config.json").write_text("{}")
    half = HALF_PRECISION.get(pytestconfig.getoption("--half-precision"))
    export(folder / "model", folder / "bundle", ExportOptions(quantization=half))
    return folder / "bundle"


@pytest.fixture(scope="session")
def small_model(here: Place, small_bundle: Path) -> Model:
    return recycle_onnx.load(small_bundle, provider=here[0], recycler_provider=here[1])


@pytest.fixture(scope="session")
def plain_model(small_bundle: Path) -> Model:
    """The same on the CPU."""
    return recycle_onnx.load(small_bundle)
