"""What the server sends, in OpenAI's shapes; `recycle` holds what is ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from recycle_onnx.runtime.generation import Result
from recycle_onnx.serve.worker import Step

FinishReason = Literal["stop", "length"]


class RecycleUsage(BaseModel):
    """The counts and speeds of one generation; see the runtime's Stats and Result."""

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
    """The number of the prompt's tokens that were in a cache."""

    cached_tokens: int


class Usage(BaseModel):
    """The token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    recycle: RecycleUsage

    @classmethod
    def of(cls, result: Result, seed: int) -> Usage:
        """Count what a generation took."""
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
    """A token's part of a streamed chunk: whether it is a recycled one, and how many were proposed and kept so far."""

    id: int
    recycled: bool
    proposed: int
    accepted: int

    @classmethod
    def of(cls, step: Step) -> RecycledToken:
        """Describe the token of a worker's step."""
        token = step.token
        return cls(id=token.id, recycled=token.recycled, proposed=step.proposed, accepted=step.accepted)


class BaseAnswer(BaseModel):
    """The fields of every answer and of every chunk of one."""

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


class ChatAnswer(BaseAnswer):
    """A whole answer to messages."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """The text that a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_null(self, handler: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in handler(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """The one answer's new part."""

    index: Literal[0] = 0
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseAnswer):
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
    """The one continuation, or its new part."""

    index: Literal[0] = 0
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextAnswer(BaseAnswer):
    """Continued text, whole or a piece of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None
    recycle: RecycledToken | None = None


class ModelRecycle(BaseModel):
    """The abilities of the bundle; `chat` tells whether it has a chat template."""

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
    """The list of models, which has one entry."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """The server's state while it takes requests."""

    status: Literal["ok"] = "ok"
    slots: int
    slots_busy: int
    queue_waiting: int


class ErrorDetail(BaseModel):
    """An error in words, its kind, the field that is wrong, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error response."""

    error: ErrorDetail
