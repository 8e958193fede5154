"""`/v1/responses` through OpenAI's client: what it answers, streams and refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from tests.serve.conftest import NAME, Running, serving, wait_until
from tests.serve.test_refusals import assert_typed, post

PATH = "/v1/responses"
RENDERED = "<|endoftext|>system: be a cat\nuser: the dog ran\nassistant:"
ASKED: Any = {"model": NAME, "instructions": "be a cat", "input": "the dog ran", "max_output_tokens": 20}
REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "alternatives of nothing": ({"input": "a", "top_logprobs": 2}, "invalid_value", "top_logprobs"),
    "too many alternatives": ({"input": "a", "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    "no input": ({}, "missing_parameter", "input"),
    "an empty input": ({"input": ""}, "invalid_value", "input"),
    "no items": ({"input": []}, "invalid_value", "input"),
    "another role": ({"input": [{"role": "cat", "content": "a"}]}, "invalid_value", "input[0].role"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "invalid_value", "input[0].content[0].type",
    ),
    "an earlier response": (
        {"input": "a", "previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id",
    ),
    "a conversation": ({"input": "a", "conversation": "conv_1"}, "unsupported_parameter", "conversation"),
    "something to store": ({"input": "a", "store": True}, "invalid_value", "store"),
    "no output": ({"input": "a", "max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    "a truncation": ({"input": "a", "truncation": "auto"}, "invalid_value", "truncation"),
    "a file search": ({"input": "a", "include": ["file_search_call.results"]}, "invalid_value", "include[0]"),
    "an unknown format": ({"input": "a", "text": {"format": {"type": "xml"}}}, "invalid_value", "text.format"),
    "a schema that is none": (
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": 3}}},
        "invalid_value", "text.format.schema",
    ),
    "too hot": ({"input": "a", "temperature": 2.5}, "invalid_value", "temperature"),
    "a typo": ({"input": "a", "max_tokens": 3}, "unsupported_parameter", "max_tokens"),
}  # fmt: skip


def expected(model: Model, **settings: Any) -> str:
    ids = model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    return model.generate(ids, max_new_tokens=20, **settings).text


def test_a_response_is_what_generate_gives(client: OpenAI, endless_model: Model) -> None:
    answer = client.responses.create(**ASKED)
    assert answer.output_text == expected(endless_model)
    assert (answer.status, answer.model, answer.store) == ("incomplete", NAME, False)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    usage = answer.usage
    assert usage is not None
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (len(ids), 20, len(ids) + 20)


def test_items_are_turns(client: OpenAI, endless_model: Model) -> None:
    items: Any = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "be "}, {"type": "input_text", "text": "a cat"}],
        },
        {"type": "message", "role": "user", "content": "the dog ran"},
    ]
    answer = client.responses.create(model=NAME, input=items, max_output_tokens=20)
    assert answer.output_text == expected(endless_model)


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    first = client.responses.create(**ASKED)
    items: Any = [{"role": "user", "content": "the dog ran"}, *first.output, {"role": "user", "content": "and then"}]
    assert client.responses.create(model=NAME, input=items, max_output_tokens=3).output_text
    sent: Any = [one.model_dump() for one in first.output]
    assert client.responses.create(model=NAME, input=[*sent, items[-1]], max_output_tokens=3).output_text


def test_settings_are_passed_on(client: OpenAI, endless_model: Model) -> None:
    answer = client.responses.create(**ASKED, temperature=1.5, top_p=0.9, extra_body={"seed": 7, "strategy": "verify"})
    assert answer.output_text == expected(endless_model, temperature=1.5, top_p=0.9, seed=7)
    assert (answer.temperature, answer.top_p) == (1.5, 0.9)


def test_streamed_events_add_up(client: OpenAI, endless_model: Model) -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == expected(endless_model)
    last: Any = events[-1]
    assert last.response.output_text == text
    assert last.response.usage.output_tokens == 20
    assert {event.item_id for event in events if event.type == "response.output_text.delta"} == {
        last.response.output[0].id
    }


def test_a_text_that_ends_by_itself_is_completed(sample_model: Model) -> None:
    with serving(sample_model) as running:
        create = running.client().responses.create
        answer = create(model=NAME, input="Once upon a time", extra_body={"stop": ["."]})
        assert answer.status == "completed"
        unlimited = create(model=NAME, input="Once upon a time", max_output_tokens=-1, extra_body={"stop": ["."]})
        assert (unlimited.status, unlimited.output_text) == ("completed", answer.output_text)
        assert answer.incomplete_details is None
        asked: Any = {"model": NAME, "input": "Once upon a time", "extra_body": {"stop": ["."]}}
        with running.client().responses.stream(**asked) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert stream.get_final_response().output_text == text == answer.output_text


def test_an_answer_follows_a_schema(sample_model: Model) -> None:
    described = {"type": "object", "properties": {"animal": {"enum": ["cat", "fox"]}}, "required": ["animal"]}
    described["additionalProperties"] = False
    form: Any = {"format": {"type": "json_schema", "name": "animal", "schema": described, "strict": True}}
    with serving(sample_model) as running:
        answer = running.client().responses.create(model=NAME, input="Which animal?", text=form)
        assert json.loads(answer.output_text)["animal"] in ("cat", "fox")
        assert answer.text is not None
        assert answer.text.format is not None
        assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize("most", [None, 3])
def test_log_probabilities_are_those_of_the_model(most: int | None, client: OpenAI, endless_model: Model) -> None:
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    tokens = list(endless_model.stream(ids, max_new_tokens=20, logprobs=most or 0))
    asked: Any = {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": most}
    answer: Any = client.responses.create(**asked)
    entries = answer.output[0].content[0].logprobs
    assert answer.top_logprobs == (most or 0)
    assert [entry.logprob for entry in entries] == pytest.approx([token.logprob for token in tokens], abs=1e-5)
    assert [len(entry.top_logprobs) for entry in entries] == [most or 0] * 20
    events: Any = list(client.responses.create(**asked, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    streamed = [entry.logprob for event in deltas for entry in event.logprobs]
    (whole,) = [event for event in events if event.type == "response.output_text.done"]
    assert streamed == [entry.logprob for entry in whole.logprobs][: len(streamed)]
    assert [entry.logprob for entry in whole.logprobs] == pytest.approx([entry.logprob for entry in entries], abs=1e-6)
    plain: Any = client.responses.create(**ASKED)
    assert plain.output[0].content[0].logprobs == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str, stream: bool, server: Running) -> None:
    fields, code, param = REFUSED[name]
    status, answer = post(server, PATH, json.dumps({**fields, "stream": stream}).encode())
    assert status == 400, answer
    assert_typed(answer, code)
    assert answer["error"]["param"] == param, answer


def test_a_stream_ends_with_an_error_event_at_the_deadline(endless_model: Model) -> None:
    with serving(endless_model, Limits(generation_seconds=1)) as running:
        stream = running.client().responses.create(model=NAME, input="the cat", stream=True, max_output_tokens=30_000)
        last: Any = list(stream)[-1]
        assert (last.type, last.code) == ("error", "generation_timeout")
        assert "took more than 1 s" in last.message
        wait_until(lambda: running.busy == 0)
