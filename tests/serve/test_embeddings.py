"""`/v1/embeddings`: vectors as numbers and as bytes, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from tests.serve.conftest import NAME, Running, serving, wait_until
from tests.serve.test_refusals import assert_typed, post

PATH = "/v1/embeddings"
TEXTS = ["the cat sat on the mat", "a dog"]
REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no input": ({}, "missing_parameter", "input"),
    "an empty text": ({"input": ""}, "invalid_value", "input"),
    "an empty text among others": ({"input": ["a", ""]}, "invalid_value", "input[1]"),
    "no texts": ({"input": []}, "invalid_value", "input"),
    "a number": ({"input": 5}, "invalid_value", "input"),
    "no token ids": ({"input": [[]]}, "invalid_value", "input[0]"),
    "ids beyond the vocabulary": ({"input": [999_999]}, "invalid_value", "input"),
    "a text longer than the context": ({"input": "cat " * 40_000}, "invalid_value", "input"),
    "one among others": ({"input": ["a", "cat " * 40_000]}, "invalid_value", "input[1]"),
    "too many texts": ({"input": ["a"] * 2049}, "invalid_value", "input"),
    "no dimensions": ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
    "too many dimensions": ({"input": "a", "dimensions": 33}, "invalid_value", "dimensions"),
    "another encoding": ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
    "another pooling": ({"input": "a", "pooling": "max"}, "invalid_value", "pooling"),
    "a typo": ({"input": "a", "dimension": 3}, "unsupported_parameter", "dimension"),
    "a stream": ({"input": "a", "stream": True}, "unsupported_parameter", "stream"),
}


def vectors(client: OpenAI, texts: Any, **fields: Any) -> np.ndarray:
    answer = client.embeddings.create(model=NAME, input=texts, **fields)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data])


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_vectors_are_those_of_the_model(encoding: Any, client: OpenAI, endless_model: Model) -> None:
    """The client asks for base64 where nothing is said."""
    expected = endless_model.embed(TEXTS)
    answer = client.embeddings.create(model=NAME, input=TEXTS, **encoding)
    made = [one.embedding for one in answer.data]
    if isinstance(made[0], str):  # what was asked for by name comes as it is
        made = [np.frombuffer(base64.b64decode(one), "<f4") for one in made]
    assert np.allclose(made, expected, atol=1e-7)
    assert answer.usage.prompt_tokens == sum(len(endless_model.encode(text)) for text in TEXTS)


def test_texts_alone_and_token_ids_are_input_too(client: OpenAI, endless_model: Model) -> None:
    expected, ids = endless_model.embed(TEXTS), [endless_model.encode(text) for text in TEXTS]
    for texts, count in ((TEXTS[0], 1), (ids[0], 1), (ids, 2), (TEXTS[:1], 1)):
        assert np.allclose(vectors(client, texts), expected[:count], atol=1e-6)


def test_dimensions_and_pooling_are_passed_on(client: OpenAI, endless_model: Model) -> None:
    made = vectors(client, TEXTS, dimensions=7, extra_body={"pooling": "last"})
    assert np.allclose(made, endless_model.embed(TEXTS, pooling="last", dimensions=7), atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, server: Running) -> None:
    fields, code, param = REFUSED[name]
    status, answer = post(server, PATH, json.dumps(fields).encode())
    assert status == 400, answer
    assert_typed(answer, code)
    assert answer["error"]["param"] == param, answer


def test_a_deadline_ends_it_and_frees_the_slot(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1)) as running:
        with pytest.raises(openai.APIStatusError, match="took more than 1 s"):
            running.client().embeddings.create(model=NAME, input=["the cat sat " * 6000] * 40)
        wait_until(lambda: running.busy == 0)
        assert running.client().embeddings.create(model=NAME, input="the cat").data
