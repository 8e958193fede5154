"""What the server sends, in OpenAI's shapes; `recycle` holds what is ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from recycle_onnx.runtime.generation import Result
from recycle_onnx.serve.worker import Step

FinishReason = Literal["stop", "length"]


class RecycleUsage(BaseModel):
    """How the tokens came about; see the runtime's Stats and Result."""

    strategy: str
    lossless: Literal["exact", "within_rounding", "no"]
    recycled_tokens: int
    proposed: int
    accepted: int
    acceptance_rate: float | None
    full_runs: int
    recycle_runs: int
    tokens_per_second: float
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float
    seed: int


class PromptTokens(BaseModel):
    """How many tokens of the prompt were in a cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    recycle: RecycleUsage

    @classmethod
    def of(cls, result: Result, seed: int) -> Usage:
        """What a generation took."""
        stats = result.stats
        shared = {name: getattr(stats, name) for name in RecycleUsage.model_fields if hasattr(stats, name)}
        recycle = RecycleUsage(
            strategy=result.strategy,
            lossless=result.lossless,
            recycled_tokens=sum(result.recycled),
            seed=seed,
            **shared,
        )
        return cls(
            prompt_tokens=stats.prompt_tokens,
            completion_tokens=stats.new_tokens,
            total_tokens=stats.prompt_tokens + stats.new_tokens,
            prompt_tokens_details=PromptTokens(cached_tokens=stats.reused_tokens),
            recycle=recycle,
        )


class RecycledToken(BaseModel):
    """Of a token in a stream: its id, whether it is a recycled one; and how many were proposed and kept so far."""

    id: int
    recycled: bool
    proposed: int
    accepted: int

    @classmethod
    def of(cls, step: Step) -> RecycledToken:
        """The same of a worker's step."""
        token = step.token
        return cls(id=token.id, recycled=token.recycled, proposed=step.proposed, accepted=step.accepted)


class Answer(BaseModel):
    """What every answer and every chunk of one says of itself."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class AnswerMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TokenText(BaseModel):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TokenText):
    """A token that was chosen, and the most likely ones in its place."""

    top_logprobs: list[TokenText]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the tokens of a message or chunk."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Answer):
    """A whole answer to messages."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_null(self, handler: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """The one answer, as far as it is new."""

    index: Literal[0] = 0
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer):
    """A piece of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    recycle: RecycledToken | None = None


class TextLogprobs(BaseModel):
    """Log-probabilities of continued text, token by token; `text_offset` counts characters of the new text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """The one continuation, or what is new of it."""

    index: Literal[0] = 0
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextAnswer(Answer):
    """Continued text, whole or a piece of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None
    recycle: RecycledToken | None = None


class ModelRecycle(BaseModel):
    """What the bundle can do. `chat` tells whether it has a chat template."""

    strategies: list[str]
    default_strategy: str
    chat: bool
    context_length: int
    precision: str
    parameters: int | None


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "local"
    recycle: ModelRecycle


class ModelList(BaseModel):
    """All models, which is one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok"] = "ok"
    slots: int
    slots_busy: int
    queue_waiting: int


class ErrorDetail(BaseModel):
    """What went wrong: for people, by kind, where, and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error of the server."""

    error: ErrorDetail
