"""What OpenAI's responses take and give: items, tools and formats in, items out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from recycle_onnx.runtime.settings import MOST_LOGPROBS
from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.serve import answers, orders
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.orders import Turns
from recycle_onnx.serve.request_object import Few, RequestObject
from recycle_onnx.serve.schema import (
    MOST_TOKENS,
    JsonObject,
    MostTokens,
    NamedSchema,
    PlainText,
    SettingsRequest,
    TemplateRequest,
)
from recycle_onnx.serve.tool_schema import (
    Choice,
    FunctionDescription,
    FunctionName,
    SomeTools,
    call_of,
    check_functions,
    set_of,
)
from recycle_onnx.serve.worker import Outcome

LOGPROBS = "message.output_text.logprobs"


class ItemText(RequestObject):
    """A piece of an item's text; an answer's may come back as it was."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, description="Ignored.")
    logprobs: list[Any] | None = Field(None, description="Ignored.")


class InputItem(RequestObject):
    """A message of the conversation so far."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ItemText], Few]
    id: str | None = Field(None, description="Ignored.")
    status: str | None = Field(None, description="Ignored.")
    phase: str | None = Field(None, description="Ignored.")

    def as_turn(self) -> dict[str, Any]:
        """Return role and text, as chat templates take them."""
        return {"role": "system" if self.role == "developer" else self.role, "content": _text_of(self.content)}


class FunctionCallItem(RequestObject):
    """A call of the conversation so far."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: FunctionName
    arguments: str = ""
    id: str | None = Field(None, description="Ignored.")
    status: str | None = Field(None, description="Ignored.")


class FunctionOutputItem(RequestObject):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: str | Annotated[list[ItemText], Few]
    id: str | None = Field(None, description="Ignored.")
    status: str | None = Field(None, description="Ignored.")


def _kind_of(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return str(kind or "message")


Item = Annotated[
    Annotated[InputItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(_kind_of),
]


class FlatFunction(FunctionDescription):
    """A tool; the only kind are functions."""

    type: Literal["function"]


class FlatChoice(RequestObject):
    """The one tool to call."""

    type: Literal["function"]
    name: FunctionName


class JsonFormat(NamedSchema):
    """A format: JSON that a schema describes."""

    type: Literal["json_schema"]


class TextOptions(RequestObject):
    """The form of the answer's text."""

    format: Annotated[PlainText | JsonObject | JsonFormat, Field(discriminator="type")] | None = None

    def constraint(self, most_bytes: int) -> Constraint | None:
        """Return what the text has to be; None for plain text."""
        if isinstance(self.format, JsonFormat):
            return orders.described(self.format.schema_, most_bytes, "text.format.schema")
        return JsonSchema(orders.ANY_OBJECT) if isinstance(self.format, JsonObject) else None


class EventOptions(RequestObject):
    """Options of a stream of events."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(TemplateRequest, SettingsRequest):
    """A text or a conversation to answer."""

    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Few]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: MostTokens | None = Field(None, description=MOST_TOKENS)
    text: TextOptions | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    truncation: Literal["disabled"] | None = None
    tools: Annotated[list[FlatFunction], SomeTools] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = Field(None, description="auto if left out.")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(
        None, description="How many of the likeliest tokens a log-probability comes with."
    )
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None, description="Log-probabilities of the text's tokens; there are no encrypted thoughts."
    )
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = Field(None, description="Returned with the answer.")
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored: caches are found by their tokens.")

    @property
    def logprobs(self) -> int | None:
        """How many alternatives a token's log-probability comes with; None for no log-probabilities."""
        return self.top_logprobs or 0 if LOGPROBS in (self.include or ()) else None

    def check(self) -> None:
        super().check()
        check_functions(self.tools or (), self._choice)
        if self.top_logprobs and self.logprobs is None:
            message = f"top_logprobs is for log-probabilities: ask for them with include: [{LOGPROBS!r}]"
            raise ApiError(400, "invalid_value", message, "top_logprobs")
        called: set[str] = set()
        for index, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if isinstance(item, FunctionCallItem):
                called.add(item.call_id)
            elif isinstance(item, FunctionOutputItem) and item.call_id not in called:
                param = f"input[{index}].call_id"
                message = f"{param} is {item.call_id[:100]!r}; expected the id of a call in an item before"
                raise ApiError(400, "invalid_value", message, param)

    @property
    def _choice(self) -> Choice:
        if isinstance(self.tool_choice, FlatChoice):
            return "required", (self.tool_choice.name,)
        return self.tool_choice or "auto", None

    def turns(self) -> Turns:
        """Return the prompt.

        Raises:
            ApiError: a call whose arguments are no JSON object.
        """
        turns: list[dict[str, Any]] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            turns.append({"role": "user", "content": self.input})
        else:
            for index, item in enumerate(self.input):
                _add(turns, item, f"input[{index}]")
        parallel = False if isinstance(self.tool_choice, FlatChoice) else self.parallel_tool_calls
        return Turns(turns, self.chat_template_kwargs or {}, set_of(self.tools or (), self._choice, parallel))


def _text_of(content: str | list[ItemText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _add(turns: list[dict[str, Any]], item: InputItem | FunctionCallItem | FunctionOutputItem, param: str) -> None:
    """Add an item to the turns; calls are part of the assistant's turn before them, if there is one."""
    if isinstance(item, InputItem):
        turns.append(item.as_turn())
    elif isinstance(item, FunctionOutputItem):
        turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _text_of(item.output)})
    else:
        call = call_of(item.call_id, item.name, item.arguments, f"{param}.arguments")
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": None})
        turns[-1].setdefault("tool_calls", []).append(call)


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """The text of the model's message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[answers.TokenLogprob] = []


class OutputMessage(BaseModel):
    """The model's message."""

    type: Literal["message"] = "message"
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call that the model makes."""

    type: Literal["function_call"] = "function_call"
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputCall


class InputDetails(BaseModel):
    """The number of input tokens that were in a cache."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """The number of output tokens that are thoughts; they are not told apart."""

    reasoning_tokens: Literal[0] = 0


class ResponsesUsage(BaseModel):
    """The token counts of one response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int
    recycle: answers.RecycleUsage

    @classmethod
    def of(cls, outcome: Outcome) -> ResponsesUsage:
        """Count what an answer took."""
        usage = answers.Usage.of(outcome.result, outcome.seed)
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            recycle=usage.recycle,
        )


class IncompleteDetails(BaseModel):
    """Why an answer was cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponsesAnswer(BaseModel):
    """A response, as far as it is there."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ItemStatus
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponsesUsage | None = None


class ResponseEvent(BaseModel):
    """An event of a stream: its type, its number, and fields that depend on the type."""

    model_config = ConfigDict(extra="allow")
    type: str
    sequence_number: int
