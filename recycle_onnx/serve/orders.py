"""What a request asks to be generated, as the runtime takes it: prompts and settings are plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import accumulate

from recycle_onnx.runtime.config import GenerationConfig, Overrides
from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.serve import schema
from recycle_onnx.serve.errors import ApiError

LONGEST_COMPLETION = 16
"""What OpenAI's API makes of a text where nothing is said."""
ANY_OBJECT = {"type": "object"}
SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True)
class Turns:
    """A list of messages to answer, as chat templates take them."""

    messages: list[dict[str, str]]


Prompt = str | list[int] | Turns
"""A text or token ids to continue, or turns to answer."""


@dataclass(frozen=True)
class Order:
    """A prompt and settings for a worker, in whose thread the prompt becomes tokens: that may take its time there."""

    prompt: Prompt
    config: GenerationConfig


def text_of(request: schema.CompletionRequest) -> str | list[int]:
    """Return the prompt of a text to continue."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return prompt
    first = prompt[0]
    return first if isinstance(first, str) else [int(token) for token in prompt]


def turns_of(request: schema.ChatRequest) -> Turns:
    """Return the prompt of messages to answer."""
    return Turns([message.as_turn() for message in request.messages])


def text_settings(request: schema.CompletionRequest) -> Overrides:
    """Return the settings of a text to continue."""
    limit = request.max_tokens or LONGEST_COMPLETION
    return {**request.settings(), "logprobs": request.top_logprobs, "max_new_tokens": limit}


def chat_settings(request: schema.ChatRequest, most_schema_bytes: int) -> Overrides:
    """Return the settings of messages to answer.

    Raises:
        InputError: the schema is not one.
        ApiError: it has more than `most_schema_bytes` of JSON.
    """
    settings: Overrides = {**request.settings(), "logprobs": request.top_logprobs}
    settings["constraint"] = constraint(request.response_format, most_schema_bytes)
    if limit := request.max_completion_tokens or request.max_tokens:
        settings["max_new_tokens"] = limit
    return settings


def constraint(form: schema.ResponseFormat | None, most_bytes: int) -> Constraint | None:
    """Return what an answer of a `response_format` has to be; None for plain text.

    Raises:
        InputError: the schema is not one.
        ApiError: it has more than `most_bytes` of JSON.
    """
    if isinstance(form, schema.JsonObject):
        return JsonSchema(ANY_OBJECT)
    if isinstance(form, schema.JsonOf):
        described = form.json_schema.schema_
        if _is_longer(described, most_bytes):
            message = f"the JSON schema is too long; expected at most {most_bytes} bytes"
            raise ApiError(400, "invalid_value", message, SCHEMA_PARAM)
        return JsonSchema(described)
    return None


def _is_longer(value: object, most: int) -> bool:
    """Tell whether a value has more characters as JSON, without looking further: millions would stop the process."""
    return any(length > most for length in accumulate(map(len, json.JSONEncoder().iterencode(value))))
