"""What a client may send: OpenAI's fields as far as they are served, and ours beside them.

Unknown fields are refused by name rather than ignored. A field that says nothing (null, "", [] or {}) is the same as
none, whether it is known or not, unless it is a required one. Settings of a generation that are served are fields as
`runtime.settings` declares them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails, from_json

from recycle_onnx.kinds import Biases, Kind, Name, Number, Strings
from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.settings import MOST_LOGPROBS, SETTINGS
from recycle_onnx.serve.errors import ApiError

Stop = Annotated[str, Field(min_length=1)]
Prompt = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
TokenName = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
Many = Field(min_length=1, fail_fast=True)
"""For lists: one error is told, so only one is looked for, as a body of megabytes may hold millions."""
Few = Field(min_length=1, max_length=4096, fail_fast=True)
"""The same of what takes microseconds each; more messages fit no context."""
MOST_STOPS, MOST_BIASES = 16, 4096
"""More slow every token down: each stop string is searched for, and each bias added, at every one."""
NOTHING: tuple[object, ...] = (None, "", [], {})
"""What clients send for a field that they do not use."""
MOST_MISTAKES = 100
"""Mistakes of a body that are looked at one by one, to name the one that matters: each takes microseconds."""
SERVED = {name: about for name, about in SETTINGS.items() if about.served}
"""Settings that are fields of requests under their own name."""
NOTES = {"seed": "Random if left out.", "top_p": "0: the likeliest token alone."}
"""What the server makes of single settings, beyond what they are everywhere."""
LEAST_TOP_P = 1e-9
"""One that only the likeliest token reaches, for what OpenAI's API calls 0."""


class RequestObject(BaseModel):
    """A JSON object whose fields are all known, with values of exactly these types."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"enum": [None, "", [], {}]}},
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, fields: Any) -> Any:
        """Leave out fields that say nothing."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value not in NOTHING or name in cls._required()}

    @classmethod
    @cache
    def _required(cls) -> frozenset[str]:
        return frozenset(field.alias or name for name, field in cls.model_fields.items() if field.is_required())


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


class GenerationRequest(ServedSettings):
    """The fields that both kinds of completion share: settings, and the answer's form."""

    model: str | None = Field(None, description="What /v1/models lists; may be left out.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    user: str | None = Field(None, description="Ignored.")

    def settings(self) -> Overrides:
        """Return the settings that were said, as the runtime takes them."""
        said = {name: value for name in SERVED if (value := getattr(self, name)) is not None}
        if said.get("top_p") == 0:
            said["top_p"] = LEAST_TOP_P
        for name in said:
            if isinstance(kind := SERVED[name].kind, Biases):
                said[name] = kind.from_json(name, said[name])
        return cast(Overrides, said)

    def check(self) -> None:
        """Refuse fields that make no sense together.

        Raises:
            ApiError: 400.
        """
        if self.stream_options and self.stream_options.include_usage and not self.stream:
            raise ApiError(400, "invalid_value", "stream_options is for streams: set stream too", "stream_options")


class CompletionRequest(GenerationRequest):
    """A text, or token ids, to continue."""

    prompt: Prompt | Annotated[list[TokenId], Many] | Annotated[list[Prompt], Many]
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="16 if left out, as OpenAI has it.")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def top_logprobs(self) -> int | None:
        """How many alternatives a token's log-probability comes with; None for no log-probabilities."""
        return self.logprobs

    def check(self) -> None:
        """Refuse fields that make no sense together, and more than one text."""
        super().check()
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str) and len(self.prompt) > 1:
            message = f"prompt has {len(self.prompt)} texts; one request continues one: send several requests"
            raise ApiError(400, "unsupported_value", message, "prompt")


class TextPart(RequestObject):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(RequestObject):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Few]
    name: str | None = Field(None, description="Ignored.")

    def as_turn(self) -> dict[str, str]:
        """Return role and text, as chat templates take them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


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


class ChatRequest(GenerationRequest):
    """Messages to answer."""

    messages: Annotated[list[Message], Few]
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Older name of max_completion_tokens.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="To the end of the context if left out."
    )
    logprobs: bool | None = None
    top_logprobs_: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(None, alias="top_logprobs")
    response_format: Annotated[ResponseFormat, Field(discriminator="type")] | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = Field(None, description="Older name of tool_choice.")
    parallel_tool_calls: bool | None = Field(None, description="Ignored: there are no tools.")
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


AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)


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
        raise _first_of(error, data) from error
    asked.check()
    return asked


def _first_of(error: ValidationError, data: object) -> ApiError:
    """Return the error of the alternative that came furthest, where a field may be several things."""
    if error.error_count() > MOST_MISTAKES:
        return ApiError(400, "invalid_value", f"the body has {error.error_count()} mistakes; see /openapi.json")
    errors = error.errors(include_url=False)
    calls = [one for one in errors if {"tool_calls", "function_call"} & set(one["loc"])]  # why there is no content
    errors = calls or errors
    deepest = max(len(_path(one, data)) for one in errors)
    fits = [one for one in errors if len(_path(one, data)) == deepest]
    # of alternatives those that are at least of the right type: a list that is too long is no string either
    fits = [one for one in fits if not one["type"].endswith("_type")] or fits
    first = fits[0]
    param = _name(_path(first, data))
    if param.endswith((".tool_calls", ".function_call")):
        return ApiError(400, "unsupported_value", f"{param}: tool calls are not served here: leave them out", param)
    if param in ("tools", "functions"):
        return ApiError(400, "unsupported_value", f"{param} are not served here: leave them out", param)
    if first["type"] == "extra_forbidden":
        return ApiError(400, "unsupported_parameter", f"{param} is not served here: leave it out", param)
    if first["type"] == "missing":
        return ApiError(400, "missing_parameter", f"{param} is missing", param)
    if param in ("n", "best_of"):
        return ApiError(400, "unsupported_value", f"{param} must be 1: one request makes one answer", param)
    shown = repr(first["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in fits if _name(_path(one, data)) == param))
    return ApiError(400, "invalid_value", f"{param or 'the body'} is {shown}; expected: {wanted}", param or None)


def _wanted(error: ErrorDetails) -> str:
    """Say in the fewest words what pydantic expected."""
    context = error.get("ctx", {})
    if error["type"] == "too_long":
        return f"at most {context['max_length']} items"
    if error["type"] == "model_type":
        return "a JSON object"
    return error["msg"].removeprefix("Input should be ")


def _path(error: ErrorDetails, data: object) -> list[int | str]:
    """Return where an error lies in what was sent, without pydantic's names for the alternatives of a union."""
    path: list[int | str] = []
    for step in error["loc"]:
        if _has(data, step):
            data = data[step]  # type: ignore[index]
            path.append(step)
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _has(data: object, step: int | str) -> bool:
    if isinstance(data, list):
        return isinstance(step, int) and step < len(data)
    return isinstance(data, dict) and step in data


def _name(path: list[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
