"""What a client may send: OpenAI's fields as far as they are served, and ours beside them.

Unknown fields are refused by name rather than ignored. A field that says nothing (null, "", [] or {}) is the same as
none, whether it is known or not, unless it is a required one. Settings of a generation that are served are fields as
`runtime.settings` declares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, ValidationError, create_model
from pydantic_core import from_json

from recycle_onnx.kinds import Biases, Kind, Name, Number, Strings
from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.settings import MOST_LOGPROBS, SETTINGS
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.mistakes import first_mistake
from recycle_onnx.serve.request_object import Few, Many, RequestObject
from recycle_onnx.serve.tool_schema import CallInMessage, ToolChoice, Tools, check_tools

Stop = Annotated[str, Field(min_length=1)]
Prompt = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
TokenName = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
MostTokens = Annotated[int, Field(ge=1)] | Literal[-1]
MOST_TOKENS = (
    f"{SETTINGS['max_new_tokens'].help} If left out what the model's generation_config.json says, else "
    f"{SETTINGS['max_new_tokens'].default}."
)
MOST_STOPS, MOST_BIASES = 16, 4096
"""More slow every token down: each stop string is searched for, and each bias added, at every one."""
MOST_ANSWERS = 64
"""Prompts times answers to each, which are generated one after another within the time of one request."""
Several = Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)
Tokens = Annotated[list[TokenId], Many]
SERVED = {name: about for name, about in SETTINGS.items() if about.served}
"""Settings that are fields of requests under their own name."""
NOTES = {"seed": "Random if left out.", "top_p": "0: the likeliest token alone."}
"""What the server makes of single settings, beyond what they are everywhere."""
LEAST_TOP_P = 1e-9
"""One that only the likeliest token reaches, for what OpenAI's API calls 0."""


class ServedRequest(RequestObject):
    """A request to the model, which may be named."""

    model: str | None = Field(None, description="Any name, unless the server is strict; may be left out.")

    def check(self) -> None:
        """Refuse fields that make no sense together.

        Raises:
            ApiError: 400.
        """


def _type_of(kind: Kind | None) -> Any:
    """Return the type by which pydantic checks a value of a setting."""
    if isinstance(kind, Number):
        least, most = kind.least, kind.most
        bounds = {"gt" if kind.above else "ge": least, "lt" if kind.below else "le": most}
        used: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
        return Annotated[int if kind.whole else float, Field(**used)]
    if isinstance(kind, Name):
        return Literal[kind.names]
    if isinstance(kind, Biases):
        return Annotated[dict[TokenName, _type_of(kind.number)], Field(max_length=MOST_BIASES)]  # type: ignore[misc]
    if isinstance(kind, Strings):
        return Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)]
    raise TypeError(f"a setting of the kind {kind} cannot be served")


if TYPE_CHECKING:  # a class that is made while the program runs is nothing to derive from
    ServedSettings = RequestObject
else:
    ServedSettings = create_model(
        "ServedSettings",
        __base__=RequestObject,
        **{
            name: (
                _type_of(about.served) | None,
                Field(None, description=f"{about.help} {NOTES.get(name, '')}".strip()),
            )
            for name, about in SERVED.items()
        },
    )


class StreamOptions(RequestObject):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SaidSettings(ServedSettings):
    """Settings by our names, which are OpenAI's where that has them."""

    def settings(self) -> Overrides:
        """Return the settings that were said, as the runtime takes them."""
        said = {name: value for name in SERVED if (value := getattr(self, name)) is not None}
        if said.get("top_p") == 0:
            said["top_p"] = LEAST_TOP_P
        for name in said:
            if isinstance(kind := SERVED[name].kind, Biases):
                said[name] = kind.from_json(name, said[name])
        return cast(Overrides, said)


class SettingsRequest(ServedRequest, SaidSettings):
    """A request with settings beside what it asks."""


class GenerationRequest(SettingsRequest):
    """The fields that both kinds of completion share: settings, and the answer's form."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = Field(None, description="Answers to each prompt.")
    user: str | None = Field(None, description="Ignored.")

    def check(self) -> None:
        super().check()
        if self.stream_options and self.stream_options.include_usage and not self.stream:
            raise ApiError(400, "invalid_value", "stream_options is for streams: set stream too", "stream_options")


class CompletionRequest(GenerationRequest):
    """A text, or token ids, to continue."""

    prompt: Prompt | Tokens | Annotated[list[Prompt], Several] | Annotated[list[Tokens], Several]
    max_tokens: MostTokens | None = Field(None, description=MOST_TOKENS)
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives a token's log-probability comes with; None for no log-probabilities."""
        return self.logprobs


class TextPart(RequestObject):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(RequestObject):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Few] | None = Field(
        None, description="May be null in an assistant's message with calls, and nowhere else."
    )
    name: str | None = Field(None, description="Ignored, but for the function's name in a result.")
    tool_calls: Annotated[list[CallInMessage], Few] | None = None
    tool_call_id: str | None = Field(None, description="The call whose result a message of the role tool is.")

    says: ClassVar[frozenset[str]] = frozenset(("content",))

    def check(self, param: str, calls: set[str]) -> None:
        """Refuse fields that this role has not, and miss those that it has; `calls` are the ids of calls before.

        Raises:
            ApiError: 400; it names the field of the message, which is `param`.
        """
        if self.tool_calls and self.role != "assistant":
            raise _wrong(f"{param}.tool_calls", f"is for the role assistant, and this message is of {self.role}")
        if self.tool_call_id and self.role != "tool":
            raise _wrong(f"{param}.tool_call_id", f"is for the role tool, and this message is of {self.role}")
        if self.role == "tool":
            self._check_result(param, calls)
        if self.content is None and not self.tool_calls:
            if "content" not in self.model_fields_set:
                raise ApiError(400, "missing_parameter", f"{param}.content is missing", f"{param}.content")
            raise _wrong(f"{param}.content", "is null; expected: a valid string or a valid list")

    def _check_result(self, param: str, calls: set[str]) -> None:
        where = f"{param}.tool_call_id"
        if self.tool_call_id is None:
            raise ApiError(400, "missing_parameter", f"{where} is missing", where)
        if self.tool_call_id not in calls:
            raise _wrong(where, f"is {self.tool_call_id[:100]!r}; expected the id of a call in a message before")

    def as_turn(self, param: str) -> dict[str, Any]:
        """Return the message as chat templates take it; `param` is where it stands.

        Raises:
            ApiError: 400; arguments of a call that are no JSON object.
        """
        text = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [
                call.as_json(f"{param}.tool_calls[{index}]") for index, call in enumerate(self.tool_calls)
            ]
        if self.role == "tool":
            turn |= {"tool_call_id": self.tool_call_id} | ({"name": self.name} if self.name else {})
        return turn


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{param} {what}", param)


class NamedSchema(RequestObject):
    """A JSON schema and its name."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class PlainText(RequestObject):
    """A response format: text without constraints."""

    type: Literal["text"]


class JsonObject(RequestObject):
    """A response format: any JSON object."""

    type: Literal["json_object"]


class JsonOf(RequestObject):
    """A response format: JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = PlainText | JsonObject | JsonOf
RESERVED = frozenset(("messages", "tools"))
"""Variables of chat templates that requests have fields for."""


def check_variables(variables: Mapping[str, Any]) -> None:
    """Refuse variables of chat templates that requests have fields for.

    Raises:
        ApiError: 400.
    """
    if taken := RESERVED.intersection(variables):
        name = min(taken)
        raise _wrong(f"chat_template_kwargs.{name}", f"is set by the field {name} of the request")


class VariablesRequest(ServedRequest):
    """A request whose prompt a chat template makes."""

    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description='Variables of the chat template, {"enable_thinking": false} for instance.'
    )

    def check(self) -> None:
        super().check()
        check_variables(self.chat_template_kwargs or {})


class TemplateRequest(VariablesRequest):
    """A request as OpenAI has it whose prompt a chat template makes."""

    parallel_tool_calls: bool | None = Field(
        None,
        description="Whether one answer may have several calls. True if left out and the chat template knows calls.",
    )


class TurnsRequest(TemplateRequest):
    """Messages, and what a chat template makes a prompt of with them."""

    messages: Annotated[list[Message], Few]
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(None, description="auto if left out.")

    def check(self) -> None:
        super().check()
        check_tools(self.tools, self.tool_choice)
        calls: set[str] = set()
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]", calls)
            calls |= {call.id for call in message.tool_calls or ()}


class ChatRequest(TurnsRequest, GenerationRequest):
    """Messages to answer."""

    max_tokens: MostTokens | None = Field(None, description="Older name of max_completion_tokens.")
    max_completion_tokens: MostTokens | None = Field(None, description=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs_: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(None, alias="top_logprobs")
    response_format: Annotated[ResponseFormat, Field(discriminator="type")] | None = None
    store: Literal[False] | None = None
    function_call: Literal["none", "auto"] | None = Field(None, description="Ignored: there are no functions.")
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = Field(None, description="Ignored.")

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives a token's log-probability comes with; None for no log-probabilities."""
        return self.top_logprobs_ or 0 if self.logprobs else None

    def check(self) -> None:
        """Refuse fields that make no sense together, among them `top_logprobs` without `logprobs`."""
        super().check()
        if self.top_logprobs_ and not self.logprobs:
            raise ApiError(400, "invalid_value", "top_logprobs is for logprobs: set that too", "top_logprobs")


AnyRequest = TypeVar("AnyRequest", bound=ServedRequest)


def parse(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """Read a request.

    Raises:
        ApiError: 400; not JSON in UTF-8, an unknown field, or a value that is not served.
    """
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON in UTF-8 ({error})") from error
    try:
        asked = kind.model_validate(data)
    except ValidationError as error:
        raise first_mistake(error, data, kind) from error
    asked.check()
    return asked
