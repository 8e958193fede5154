"""Whatever fits the OpenAPI document, or nearly fits it, is answered as the document says, and never with 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.meta import CoveragePhaseData
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import recycle_onnx
from recycle_onnx.serve import openapi
from recycle_onnx.serve.app import ROUTES
from tests.helpers.campaigns import LONG
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import Running, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = openapi.document(recycle_onnx.__version__, with_token=False)
INHERITED = ("POST /v1/messages/count_tokens", "POST /apply-template")
"""Whose requests are base classes of others', so that every mistake in a field is made there."""
CONFIG = {"operations": [{"include-name": list(INHERITED), "phases": {"coverage": {"enabled": False}}}]}
schema = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(CONFIG))
tried: set[tuple[object, ...]] = set()


THINNED = 1 if LONG else 3
"""Of so many kinds of cases one is tried: most are the same mistakes in other fields, or in the other APIs."""


def is_new(case: schemathesis.Case) -> bool:
    """Tell whether a case is the first of its kind: a field of the wrong type is tried with one other type, not six."""
    about = case.meta.phase.data if case.meta else None
    if not isinstance(about, CoveragePhaseData):
        return True
    kind = (case.operation.label, about.description, about.location, about.parameter)
    is_known = kind in tried
    tried.add(kind)
    return not is_known and len(tried) % THINNED == 0


@pytest.fixture(scope="module")
def short(tiny_bundle: Path) -> Iterator[Running]:
    """A model with a context of 64 tokens, whose answers are short."""
    with serving(recycle_onnx.load(tiny_bundle, threads=1)) as running:
        yield running


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_server_does_what_its_document_says(case: schemathesis.Case, short: Running) -> None:
    if is_new(case):
        case.call_and_validate(base_url=short.url, checks=CHECKS, timeout=PATIENCE)


@pytest.mark.parametrize(("method", "path"), [key for key, one in openapi.OPERATIONS.items() if one.asked])
def test_the_example_of_a_request_is_answered(method: str, path: str, short: Running) -> None:
    example = openapi.OPERATIONS[method, path].example
    assert example
    case = schema[path][method].Case(body=dict(example), media_type="application/json")
    answer = case.call_and_validate(base_url=short.url, checks=CHECKS, timeout=PATIENCE)
    assert answer.status_code == 200


def test_the_document_is_served(short: Running) -> None:
    with urlopen(f"{short.url}/openapi.json") as response:
        assert json.load(response) == DOCUMENT


def test_every_route_is_described() -> None:
    routes = {(method, path.replace(":path}", "}")) for method, path, _ in ROUTES}
    assert routes | {("GET", "/openapi.json")} == set(openapi.OPERATIONS)
