"""What Ollama's API takes and gives."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.settings import TO_THE_END
from recycle_onnx.runtime.structured import JsonSchema
from recycle_onnx.runtime.tools.thoughts import FIELD
from recycle_onnx.serve import orders
from recycle_onnx.serve.answers import Sparse
from recycle_onnx.serve.embeddings import Inputs
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.orders import Turns
from recycle_onnx.serve.request_object import Few, RequestObject
from recycle_onnx.serve.schema import Prompt, SaidSettings, ServedRequest, VariablesRequest
from recycle_onnx.serve.tool_schema import FunctionName, Tools, call_of, check_tools, tool_set

Loading = Field(None, description="Ignored: the model is loaded.")


LINES = "application/x-ndjson"
NEVER = "9999-12-31T23:59:59Z"
"""When the model is unloaded."""


def when(seconds: float) -> str:
    """Return a time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class OllamaOptions(SaidSettings):
    """Settings by Ollama's names, and by ours."""

    num_predict: Literal[-1, -2] | Annotated[int, Field(ge=1)] | None = Field(
        None, description="Most new tokens; -1 or -2 for no limit but the context."
    )
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    num_ctx: int | None = Loading
    num_keep: int | None = Loading
    num_batch: int | None = Loading
    num_gpu: int | None = Loading
    num_thread: int | None = Loading
    main_gpu: int | None = Loading
    numa: bool | None = Loading
    low_vram: bool | None = Loading
    f16_kv: bool | None = Loading
    use_mmap: bool | None = Loading
    use_mlock: bool | None = Loading

    def settings(self) -> Overrides:
        settings = super().settings()
        if self.repeat_penalty is not None:
            settings["repetition_penalty"] = self.repeat_penalty
        if self.num_predict is not None:
            settings["max_new_tokens"] = self.num_predict if self.num_predict > 0 else TO_THE_END
        return settings


class OllamaRequest(VariablesRequest):
    """The fields that chat and generate share."""

    stream: bool | None = Field(None, description="true if left out.")
    format: Literal["json"] | dict[str, Any] | None = Field(None, description="json, or a JSON schema.")
    options: OllamaOptions | None = None
    keep_alive: float | str | None = Loading
    think: bool | None = Field(None, description="The template's enable_thinking; what it does by itself if left out.")

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return {**(self.chat_template_kwargs or {}), **({} if self.think is None else {"enable_thinking": self.think})}

    def settings(self, most_schema_bytes: int) -> Overrides:
        """Return the settings that were said, as the runtime takes them."""
        settings = self.options.settings() if self.options else Overrides()
        if self.format == "json":
            settings["constraint"] = JsonSchema(orders.ANY_OBJECT)
        elif isinstance(self.format, dict):
            settings["constraint"] = orders.described(self.format, most_schema_bytes, "format")
        return settings


class OllamaFunction(RequestObject):
    """The function of a call, and its arguments."""

    name: FunctionName
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: int | None = Field(None, description="Ignored.")


class OllamaCall(RequestObject):
    """A call in an assistant's message."""

    function: OllamaFunction
    id: str | None = Field(None, description="Ignored: results are told apart by name and order.")


class OllamaMessage(RequestObject):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = Field(None, description="May be left out in an assistant's message with calls.")
    tool_calls: Annotated[list[OllamaCall], Few] | None = None
    thinking: str | None = Field(None, description="The thought of an assistant's message, as an answer had it.")
    tool_name: str | None = Field(None, description="The function whose result a message of the role tool is.")

    says: ClassVar[frozenset[str]] = frozenset(("content",))

    def check(self, param: str) -> None:
        """Refuse calls in another role than the assistant's, and a message without content.

        Raises:
            ApiError: 400; it names the field of the message, which is `param`.
        """
        if self.tool_calls and self.role != "assistant":
            message = f"{param}.tool_calls is for the role assistant, and this message is of {self.role}"
            raise ApiError(400, "invalid_value", message, f"{param}.tool_calls")
        if self.content is None and not self.tool_calls:
            raise ApiError(400, "missing_parameter", f"{param}.content is missing", f"{param}.content")


class OllamaChatRequest(OllamaRequest):
    """Messages to answer; without any the model is only asked for."""

    messages: Annotated[list[OllamaMessage], Few] | None = None
    tools: Tools | None = None

    def check(self) -> None:
        super().check()
        check_tools(self.tools, None)
        for index, message in enumerate(self.messages or ()):
            message.check(f"messages[{index}]")

    def prompt_of(self) -> Turns | None:
        """Return the prompt; None where there is none.

        Raises:
            ApiError: a result of no call.
        """
        turns: list[dict[str, Any]] = []
        waiting: list[tuple[str, str]] = []  # ids and names of calls whose results are still to come
        for index, message in enumerate(self.messages or ()):
            turn: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.thinking and message.role == "assistant":
                turn[FIELD] = message.thinking
            if message.tool_calls:
                calls = [
                    call_of(f"call_{index}_{number}", call.function.name, call.function.arguments, "arguments")
                    for number, call in enumerate(message.tool_calls)
                ]
                waiting += [(call["id"], call["function"]["name"]) for call in calls]
                turn |= {"content": message.content or None, "tool_calls": calls}
            elif message.role == "tool":
                turn["tool_call_id"] = _answered(waiting, message.tool_name, f"messages[{index}]")
            turns.append(turn)
        return Turns(turns, self.variables, tool_set(self.tools, None, None)) if turns else None


class OllamaGenerateRequest(OllamaRequest):
    """A prompt to answer through the chat template, or as it is; without one the model is only asked for."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="Continue the prompt without the chat template.")

    def prompt_of(self) -> Turns | str | None:
        """Return the prompt; None where there is none."""
        if not self.prompt:
            return None
        if self.raw:
            return self.prompt
        system = [{"role": "system", "content": self.system}] if self.system else []
        return Turns([*system, {"role": "user", "content": self.prompt}], self.variables)


def _answered(waiting: list[tuple[str, str]], name: str | None, param: str) -> str:
    """Take the call that a message of the role tool answers out of those that wait: the first, or the first so named.

    Raises:
        ApiError: there is none.
    """
    for call in waiting:
        if name in (None, call[1]):
            waiting.remove(call)
            return call[0]
    raise ApiError(400, "invalid_value", f"{param} answers no call in a message before", param)


class OllamaEmbedRequest(ServedRequest):
    """Texts to make vectors of."""

    input: Prompt | Annotated[list[Prompt], Inputs]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate: bool | None = Field(
        None, description="Leave out the end of a text that is too long for the context; true if left out."
    )
    options: OllamaOptions | None = Field(None, description="Ignored.")
    keep_alive: float | str | None = Loading


class OllamaEmbeddingRequest(ServedRequest):
    """A text to make a vector of, as older clients ask for it; the end of one that is too long is left out."""

    prompt: Prompt
    options: OllamaOptions | None = Field(None, description="Ignored.")
    keep_alive: float | str | None = Loading


class OllamaShowRequest(ServedRequest):
    """A model to describe."""

    verbose: bool | None = Field(None, description="Ignored.")


class OllamaCalled(BaseModel):
    """A function that is called, and its arguments."""

    name: str
    arguments: dict[str, Any]


class OllamaMade(BaseModel):
    """A call that the model makes."""

    function: OllamaCalled


class OllamaTurn(Sparse):
    """The model's turn, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaMade] | None = None


class OllamaAnswer(Sparse):
    """An answer, or one line of a stream; the last one has reason, counts, and times in nanoseconds."""

    model: str
    created_at: str = Field(default_factory=lambda: when(time.time()))
    message: OllamaTurn | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaEmbeddings(BaseModel):
    """The vectors of all texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class OllamaEmbedding(BaseModel):
    """The vector of one text."""

    embedding: list[float]


class OllamaDetails(BaseModel):
    """The kind of a model."""

    parent_model: str = ""
    format: Literal["onnx"] = "onnx"
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(BaseModel):
    """A model that is there."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaTags(BaseModel):
    """The list of models, which has one entry."""

    models: list[OllamaModel]


class OllamaLoaded(BaseModel):
    """A model that is loaded."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str = NEVER
    size_vram: int = Field(0, description="Always 0: the server does not know what a provider keeps where.")
    context_length: int


class OllamaRunning(BaseModel):
    """The list of loaded models, which has one entry."""

    models: list[OllamaLoaded]


class OllamaShown(BaseModel):
    """The description of the model."""

    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(BaseModel):
    """The version of this server."""

    version: str


class OllamaError(BaseModel):
    """The body of an error."""

    error: str
