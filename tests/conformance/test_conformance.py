"""The runtime against the conformance cases: graphs of each flavour, on the providers that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.runtime.model import Model

CASES = read_json(Path(__file__).parent / "cases.json")["cases"]
COUNTS = ("full_runs", "recycle_runs", "proposed", "accepted")


def name(case: dict[str, Any]) -> str:
    request = case["request"]
    return f"{request.get('strategy', 'default')}-{request.get('max_new_tokens', 'all')}-{request['prompt'][:24]}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_case(case: dict[str, Any], placed_model: Model) -> None:
    request, expect = case["request"], case["expect"]
    if "error" in expect:
        with pytest.raises(InputError):
            placed_model.generate(**request)
        return
    result = placed_model.generate(**request)
    for field in ("tokens", "recycled", "finish_reason", "text"):
        if field in expect:
            assert getattr(result, field) == expect[field]
    for count in COUNTS:
        if count in expect:
            assert getattr(result.stats, count) == expect[count], count
