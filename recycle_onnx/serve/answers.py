"""What the server sends, in OpenAI's shapes; `recycle` holds what is ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from recycle_onnx.runtime.generation import Result
from recycle_onnx.serve.worker import Step

FinishReason = Literal["stop", "length", "tool_calls"]
SUMMED = (
    "recycled_tokens", "proposed", "accepted", "full_runs", "recycle_runs", "runs_on_fewer_threads",
    "prefill_s", "decode_s",
)  # fmt: skip
"""The fields of `RecycleUsage` that add up over several generations."""


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
    runs_on_fewer_threads: int
    tokens_per_second: float
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float
    seed: int

    @classmethod
    def total(cls, parts: Sequence[RecycleUsage]) -> RecycleUsage:
        """Add up the counts and times of several generations; speeds are those of all, what else there is the first's.

        (Of tokens a second those of a generation's first token do not count, so nor do they here.)
        """
        sums = {name: sum(getattr(part, name) for part in parts) for name in SUMMED}
        tokens, seconds = sum(part.tokens_per_second * part.decode_s for part in parts), sums["decode_s"]
        verified = parts[0].acceptance_rate is not None and sums["proposed"]
        rates = {
            "acceptance_rate": sums["accepted"] / sums["proposed"] if verified else None,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        }
        return parts[0].model_copy(update=sums | rates)


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

    @classmethod
    def total(cls, usages: Sequence[Usage], prompts: Sequence[Usage]) -> Usage:
        """Add up the usages of several answers; their prompts are counted in `prompts`, a usage for each."""
        if len(usages) == 1:
            return usages[0]
        prompt, completion = sum(one.prompt_tokens for one in prompts), sum(one.completion_tokens for one in usages)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokens(
                cached_tokens=sum(one.prompt_tokens_details.cached_tokens for one in prompts)
            ),
            recycle=RecycleUsage.total([one.recycle for one in usages]),
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


class FunctionCall(BaseModel):
    """The function of a call, and its arguments as JSON."""

    name: str
    arguments: str


class CallInAnswer(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(BaseModel):
    """The model's turn; `content` is null where it is calls and no words."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CallInAnswer] | None = None

    @model_serializer(mode="wrap")
    def _without_no_calls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name != "tool_calls" or value}


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
    """An answer; several to one request are numbered."""

    index: int = 0
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(BaseAnswer):
    """A whole answer to messages."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Sparse(BaseModel):
    """An object of which fields that are null are left out."""

    @model_serializer(mode="wrap")
    def _without_null(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class FunctionDelta(Sparse):
    """A function's name at the beginning of its call, or a piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(Sparse):
    """The part that a chunk adds to call number `index`: `id` and `type` come once, with the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Sparse):
    """The text or calls that a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """An answer's new part."""

    index: int = 0
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
    """A continuation, or its new part."""

    index: int = 0
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextAnswer(BaseAnswer):
    """Continued text, whole or a piece of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None
    recycle: RecycledToken | None = None


AnyAnswer = ChatAnswer | ChatChunk | TextAnswer


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
