"""What is for long texts, a window of the module and caches of eight bits, changes no text that verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.export import ExportOptions, export
from recycle_onnx.files import read_json
from recycle_onnx.runtime.decoding import decoder
from recycle_onnx.runtime.model import Model
from tests.conformance.conftest import Place
from tests.helpers.x86 import x86

SAMPLE = Path(__file__).parents[2] / "samples" / "stories"
LOSSLESS = [
    case
    for case in read_json(Path(__file__).parent / "cases.json")["cases"]
    if "tokens" in case["expect"] and case["request"].get("strategy") in ("full", "verify", "lookup")
]


def name(case: dict[str, Any]) -> str:
    request = case["request"]
    return f"{request['strategy']}-{request.get('max_new_tokens', 'all')}-{request['prompt'][:24]}"


@pytest.fixture(scope="module")
def windowed_model(here: Place, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("windowed") / "bundle"
    export(SAMPLE, folder, ExportOptions(module_window=24))
    return recycle_onnx.load(folder, provider=here[0], recycler_provider=here[1])


@pytest.mark.parametrize("case", LOSSLESS, ids=name)
def test_a_module_with_a_window_changes_no_text(
    case: dict[str, Any], windowed_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "SPARE_ROWS", 8)  # so that prompts of this length have rows to leave out
    assert windowed_model.generate(**case["request"]).tokens == case["expect"]["tokens"]


@x86
@pytest.mark.parametrize("strategy", ["verify", "lookup"])
@pytest.mark.parametrize("prompt", sorted({case["request"]["prompt"] for case in LOSSLESS}), ids=lambda p: p[:24])
def test_caches_of_eight_bits_give_one_text_whatever_the_strategy(
    prompt: str, strategy: str, int8_cache_bundle: Path
) -> None:
    model = recycle_onnx.load(int8_cache_bundle, threads=1)
    wanted = model.generate(prompt, strategy="full", max_new_tokens=40)
    result = model.generate(prompt, strategy=strategy, max_new_tokens=40)
    assert (result.tokens, result.lossless) == (wanted.tokens, "exact")
