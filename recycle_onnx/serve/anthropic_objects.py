"""What Anthropic's API takes and gives: blocks in, blocks out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.tools.thoughts import FIELD
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.orders import Turns
from recycle_onnx.serve.request_object import Few, RequestObject
from recycle_onnx.serve.schema import MOST_STOPS, MostTokens, SettingsRequest, Stop, VariablesRequest
from recycle_onnx.serve.tool_schema import (
    Choice,
    FunctionDescription,
    FunctionName,
    SomeTools,
    call_of,
    check_functions,
    set_of,
)


class TextBlock(RequestObject):
    """A piece of a message, or of the system message."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = Field(None, description="Ignored: caches are found by their tokens.")
    citations: list[Any] | None = Field(None, description="Ignored.")


Texts = str | Annotated[list[TextBlock], Few]
CACHE = Field(None, description="Ignored: caches are found by their tokens.")


class ToolUseBlock(RequestObject):
    """A call in a message of the assistant's."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: FunctionName
    input: dict[str, Any] = Field(default_factory=dict)
    cache_control: dict[str, Any] | None = CACHE


class ToolResultBlock(RequestObject):
    """What a call has returned, in a message of the user's."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: Texts | None = None
    is_error: bool | None = Field(None, description="Ignored: the text says so.")
    cache_control: dict[str, Any] | None = CACHE


class ThinkingBlock(RequestObject):
    """A thought of the assistant's, as an answer had it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description="Ignored.")


MessageBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class BlockMessage(RequestObject):
    """One turn of a chat."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[MessageBlock], Few]

    def check(self, param: str, calls: set[str]) -> None:
        """Refuse blocks that this role has not, and results of calls that are not among the ids `calls` before.

        Raises:
            ApiError: 400; it names the block of the message, which is `param`.
        """
        for index, block in enumerate(self.content if isinstance(self.content, list) else ()):
            where = f"{param}.content[{index}]"
            role = {"tool_use": "assistant", "thinking": "assistant", "tool_result": "user"}.get(block.type, self.role)
            if role != self.role:
                message = f"{where} is a {block.type}, which is for the role {role}, and this message is of {self.role}"
                raise ApiError(400, "invalid_value", message, where)
            if isinstance(block, ToolResultBlock) and block.tool_use_id not in calls:
                message = f"{where}.tool_use_id is {block.tool_use_id[:100]!r}; expected the id of a call before"
                raise ApiError(400, "invalid_value", message, f"{where}.tool_use_id")
            if isinstance(block, ToolUseBlock):
                calls.add(block.id)

    def turns(self) -> Iterator[dict[str, Any]]:
        """Yield the turns of the message as chat templates take them: results are turns of their own."""
        if isinstance(self.content, str):
            yield {"role": self.role, "content": self.content}
            return
        results = [block for block in self.content if isinstance(block, ToolResultBlock)]
        for block in results:
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text_of(block.content)}
        text = "".join(block.text for block in self.content if isinstance(block, TextBlock))
        calls = [call_of(one.id, one.name, one.input, "input") for one in self.content if isinstance(one, ToolUseBlock)]
        thought = "\n".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))
        thinking = {FIELD: thought} if thought else {}
        if calls:
            yield {"role": self.role, "content": text or None, "tool_calls": calls, **thinking}
        elif text or not results:
            yield {"role": self.role, "content": text, **thinking}


class ClientTool(RequestObject):
    """A tool of the client's."""

    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = CACHE

    def as_function(self) -> FunctionDescription:
        """Return the tool as OpenAI's APIs describe one."""
        return FunctionDescription(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )


class ClientChoice(RequestObject):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = Field(None, description="Of the tool, for the type tool.")
    disable_parallel_tool_use: bool | None = None


class NoThinking(RequestObject):
    """An answer without a thought."""

    type: Literal["disabled"]


class Thinking(RequestObject):
    """An answer that may begin with a thought."""

    type: Literal["enabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ignored: max_tokens bounds thought and answer together."
    )
    display: Literal["summarized"] | None = Field(None, description="Ignored: thoughts are shown whole.")


class CallerMetadata(RequestObject):
    """Who asks."""

    user_id: str | None = Field(None, description="Ignored.")


class CountRequest(VariablesRequest, SettingsRequest):
    """Messages whose tokens are counted."""

    messages: Annotated[list[BlockMessage], Few]
    system: Texts | None = None
    thinking: Annotated[NoThinking | Thinking, Field(discriminator="type")] | None = Field(
        None, description="The template's enable_thinking; what it does by itself if left out."
    )
    tools: Annotated[list[ClientTool], SomeTools] | None = None
    tool_choice: ClientChoice | None = Field(None, description="auto if left out.")
    cache_control: dict[str, Any] | None = CACHE

    @property
    def functions(self) -> list[FunctionDescription]:
        """The tools as OpenAI's APIs describe them."""
        return [tool.as_function() for tool in self.tools or ()]

    @property
    def choice(self) -> Choice:
        """Whether something must be called, and the names of what may be, None for all."""
        if self.tool_choice is None or self.tool_choice.type == "auto":
            return "auto", None
        if self.tool_choice.type == "none":
            return "none", None
        return "required", (self.tool_choice.name,) if self.tool_choice.name else None

    def turns(self) -> Turns:
        """Return the prompt."""
        system = [{"role": "system", "content": _text_of(self.system)}] if self.system else []
        turns = [*system, *(turn for message in self.messages for turn in message.turns())]
        choice = self.tool_choice
        several = False if choice and (choice.disable_parallel_tool_use or choice.name) else None
        variables = {**(self.chat_template_kwargs or {})}
        if self.thinking:
            variables["enable_thinking"] = isinstance(self.thinking, Thinking)
        return Turns(turns, variables, set_of(self.functions, self.choice, several))

    def check(self) -> None:
        """Refuse tools, calls and results that do not fit, and an answer that is begun: the template begins one."""
        super().check()
        if self.tool_choice and (self.tool_choice.type == "tool") != (self.tool_choice.name is not None):
            message = "tool_choice.name is for the type tool, and only for that"
            raise ApiError(400, "invalid_value", message, "tool_choice.name")
        check_functions(self.functions, self.choice, schema="input_schema")
        calls: set[str] = set()
        for index, one in enumerate(self.messages):
            one.check(f"messages[{index}]", calls)
        last = len(self.messages) - 1
        if self.messages[last].role == "assistant":
            param = f"messages[{last}].role"
            raise ApiError(400, "invalid_value", f"{param} is 'assistant'; expected the last one to be 'user'", param)


class MessagesRequest(CountRequest):
    """Messages to answer."""

    max_tokens: MostTokens = Field(description="Most new tokens; -1 for no limit but the context.")
    stop_sequences: Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    metadata: CallerMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def settings(self) -> Overrides:
        settings: Overrides = {**super().settings(), "max_new_tokens": self.max_tokens}
        if self.stop_sequences:
            settings["stop"] = self.stop_sequences
        return settings

    def has_stop(self, string: str | None) -> bool:
        """Tell whether a string that ended the text is one of the request's, and none of the template's own."""
        stop = self.settings().get("stop", ())
        return string in ([stop] if isinstance(stop, str) else stop)


class TextAnswerBlock(BaseModel):
    """Words of the answer."""

    type: Literal["text"] = "text"
    text: str


class CallAnswerBlock(BaseModel):
    """A call that the model makes; the arguments of one that was cut short are none."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class ThoughtAnswerBlock(BaseModel):
    """What the model thinks before it answers; nothing is signed here."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: Literal[""] = ""


AnswerBlock = ThoughtAnswerBlock | TextAnswerBlock | CallAnswerBlock


class MessagesUsage(BaseModel):
    """The token counts: of the input those that were read, and those that were in a cache."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0] = 0
    cache_read_input_tokens: int
    output_tokens: int


class MessagesAnswer(BaseModel):
    """The model's turn."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessagesEvent(BaseModel):
    """An event of a stream: its type, and fields that depend on it."""

    model_config = ConfigDict(extra="allow")
    type: str


class CountAnswer(BaseModel):
    """The number of tokens of messages."""

    input_tokens: int


class TypedError(BaseModel):
    """The kind of an error, and what it says."""

    type: str
    message: str


class MessagesError(BaseModel):
    """The body of an error."""

    type: Literal["error"] = "error"
    error: TypedError


def _text_of(content: Texts | None) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content or ())
