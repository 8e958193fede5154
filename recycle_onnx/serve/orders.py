"""What a request asks to be generated, as the runtime takes it: prompts and settings are plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, cast

from recycle_onnx.runtime.config import GenerationConfig, Overrides
from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.runtime.tools.tool import ToolSet
from recycle_onnx.runtime.tools.tool_chat import NO_TOOLS, ToolUse
from recycle_onnx.serve import schema
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.tool_schema import FunctionDescription, tool_set

ANY_OBJECT = {"type": "object"}
SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True)
class Turns:
    """A list of messages to answer, as chat templates take them, with the template's variables, and tools to call."""

    messages: list[dict[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: ToolSet = NO_TOOLS

    @property
    def has_tools(self) -> bool:
        """Whether there are tools, or calls and results in the messages."""
        in_messages = any(turn.get("tool_calls") or turn["role"] == "tool" for turn in self.messages)
        return bool(self.tools.tools) or in_messages


Prompt = str | list[int] | Turns
"""A text or token ids to continue, or turns to answer."""


@dataclass(frozen=True)
class Fields:
    """The names of the fields of a request that hold the prompt, and what the answer has to be; errors tell them."""

    prompt: str = "messages"
    answer: str = "response_format"


MESSAGES = Fields()


@dataclass(frozen=True)
class Order:
    """A prompt and settings for a worker, in whose thread the prompt becomes tokens: that may take its time there.

    `use` says how the answer calls tools, if it has any, and `fields` where the request says all that. `thoughts`
    tells thoughts from the rest of an answer without tools, where the chat template knows thoughts.
    """

    prompt: Prompt
    config: GenerationConfig
    use: ToolUse | None = None
    fields: Fields = MESSAGES
    thoughts: ToolUse | None = None

    def constrained(self) -> Order:
        """Return the order with the grammar of its answer, for which templates are rendered.

        Raises:
            InputError: the template refuses its variables.
        """
        if self.thoughts is not None:
            self.thoughts.prepare()
        if self.use is None:
            return self
        return replace(self, config=self.config.updated(constraint=self.use.grammar))


def texts_of(request: schema.CompletionRequest) -> list[str | list[int]]:
    """Return the prompts of texts to continue."""
    prompt = request.prompt
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return cast(list[str | list[int]], prompt if several else [prompt])


def turns_of(request: schema.TurnsRequest) -> Turns:
    """Return the prompt of messages to answer.

    Raises:
        ApiError: a call in a message whose arguments are no JSON object.
    """
    messages = [message.as_turn(f"messages[{index}]") for index, message in enumerate(request.messages)]
    tools = tool_set(request.tools, request.tool_choice, request.parallel_tool_calls)
    return Turns(messages, request.chat_template_kwargs or {}, tools)


def text_settings(request: schema.CompletionRequest) -> Overrides:
    """Return the settings of a text to continue."""
    settings: Overrides = {**request.settings(), "logprobs": request.top_logprobs}
    if request.max_tokens:
        settings["max_new_tokens"] = request.max_tokens
    return settings


def chat_settings(request: schema.ChatRequest, most_schema_bytes: int) -> Overrides:
    """Return the settings of messages to answer.

    Raises:
        InputError: the schema is not one.
        ApiError: it has more than `most_schema_bytes` of JSON, or those of the tools have together.
    """
    check_tools_length([tool.function for tool in request.tools or ()], most_schema_bytes)
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
        return described(form.json_schema.schema_, most_bytes, SCHEMA_PARAM)
    return None


def described(json_schema: dict[str, Any], most_bytes: int, param: str) -> Constraint:
    """Return the constraint to JSON that a schema describes; `param` is the field that holds the schema.

    Raises:
        InputError: the schema is not one.
        ApiError: it has more than `most_bytes` of JSON.
    """
    if _is_longer(json_schema, most_bytes):
        message = f"the JSON schema is too long; expected at most {most_bytes} bytes"
        raise ApiError(400, "invalid_value", message, param)
    return JsonSchema(json_schema)


def check_tools_length(functions: Iterable[FunctionDescription], most_bytes: int) -> None:
    """Refuse tools whose schemas are too long together.

    Raises:
        ApiError: 400.
    """
    if _is_longer([function.parameters for function in functions], most_bytes):
        message = f"the tools' parameters are too long; expected at most {most_bytes} bytes together"
        raise ApiError(400, "invalid_value", message, "tools")


def _is_longer(value: object, most: int) -> bool:
    """Tell whether a value has more characters as JSON, without looking further: millions would stop the process."""
    return any(length > most for length in accumulate(map(len, json.JSONEncoder().iterencode(value))))
