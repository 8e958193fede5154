"""Which provider suits a bundle, and where a graph's nodes land."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.doctor import assignment, providers
from recycle_onnx.doctor.assignment import Assignment
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.ort.sessions import session_options
from tests.helpers.skips import needs_standard


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def test_those_that_are_here_are_those_that_onnxruntime_has() -> None:
    built_in = set(ort.get_available_providers())
    for provider in providers.find():
        if provider.onnxruntime_name in built_in:
            assert provider.why_not is None
        elif provider.why_not is not None:
            assert "pip install" in provider.why_not or "it needs" in provider.why_not


def test_auto_is_the_best_one_here() -> None:
    names = providers.candidates("auto")
    assert "cpu" in names
    if ort.get_available_providers() == ["AzureExecutionProvider", "CPUExecutionProvider"]:
        assert names == ["cpu"]


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(InputError, match="'abacus' is not known"):
        providers.candidates("abacus")


@needs_standard
def test_the_cpu_runs_both_flavours(manifest: Manifest) -> None:
    for flavour in ("ort", "standard"):
        assert providers.choose(replace(manifest, flavour=flavour), ["cpu"]) == ("cpu", [])


@pytest.mark.parametrize(("flavour", "name"), [("ort", "qnn"), ("ort", "coreml"), ("abacus", "cpu")])
def test_a_flavour_that_the_provider_cannot_run(flavour: str, name: str, manifest: Manifest) -> None:
    chosen, (finding,) = providers.choose(replace(manifest, flavour=flavour), [name])
    assert (chosen, finding.level) == (name, "broken")
    assert flavour in finding.what
    assert "--flavour" in finding.do


def test_auto_passes_over_a_provider_that_would_be_slow_and_says_so(manifest: Manifest) -> None:
    chosen, (finding,) = providers.choose(manifest, ["cuda", "cpu"])  # float32: CUDA's attention takes float16 only
    assert (chosen, finding.level) == ("cpu", "advice")
    assert "--precision fp16" in finding.do


@pytest.mark.skipif(not assignment.IS_TOLD, reason="this ONNX Runtime is too old to tell")
def test_nodes_by_provider(tiny_bundle: Path) -> None:
    options = session_options(1)
    options.add_session_config_entry(*assignment.RECORD)
    session = ort.InferenceSession(tiny_bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = assignment.of_session(session)
    assert found is not None
    assert list(found.nodes) == ["CPUExecutionProvider"]
    assert found.nodes["CPUExecutionProvider"]["com.microsoft.GroupQueryAttention"] == 2  # one a layer
    assert found.elsewhere("CPUExecutionProvider") == {}
    assert sum(found.elsewhere("CUDAExecutionProvider").values()) == found.total > 10
    assert list(providers.elsewhere({"full": found}, {"full": "cpu"})) == []
    (none_there,) = providers.elsewhere({"full": found}, {"full": "cuda"})
    assert none_there.level == "broken"


def test_attention_elsewhere_is_worth_a_word_and_shapes_are_not() -> None:
    shapes = Assignment({"CUDAExecutionProvider": {"MatMul": 4}, "CPUExecutionProvider": {"Cast": 2}})
    assert list(providers.elsewhere({"full": shapes}, {"full": "cuda"})) == []
    heavy = {"CPUExecutionProvider": {"com.microsoft.GroupQueryAttention": 2, "Cast": 2}}
    split = Assignment({"CUDAExecutionProvider": {"MatMul": 4}, **heavy})
    (finding,) = providers.elsewhere({"full": split}, {"full": "cuda"})
    assert "2 com.microsoft.GroupQueryAttention" in finding.what
    assert finding.level == "advice"
