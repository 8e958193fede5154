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
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import recycle_onnx
from recycle_onnx.serve import openapi
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import Running, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = openapi.document(recycle_onnx.__version__, with_token=False)
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def short(tiny_bundle: Path) -> Iterator[Running]:
    """A model with a context of 64 tokens, whose answers are short."""
    with serving(recycle_onnx.load(tiny_bundle, threads=1)) as running:
        yield running


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_server_does_what_its_document_says(case: schemathesis.Case, short: Running) -> None:
    case.call_and_validate(base_url=short.url, checks=CHECKS, timeout=PATIENCE)


def test_the_document_is_served(short: Running) -> None:
    with urlopen(f"{short.url}/openapi.json") as response:
        assert json.load(response) == DOCUMENT
