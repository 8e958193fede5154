"""The two forms of answers, as messages and as continued text: a generation whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from recycle_onnx.runtime.generation import Token
from recycle_onnx.serve import answers
from recycle_onnx.serve.token_decoder import TokenDecoder
from recycle_onnx.serve.worker import Step

LOWEST_LOGPROB = -9999.0
"""What OpenAI's API gives for tokens that cannot come: JSON has no infinity."""


@dataclass(frozen=True)
class Label:
    """The fields that all chunks of one answer have in common."""

    model: str
    system_fingerprint: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    unique: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of an BaseAnswer."""
        return {
            "id": f"{self.prefix}-{self.unique}",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class AnswerFormat(Protocol):
    """A way to write a generation down, whole or in chunks."""

    def opening(self) -> list[answers.BaseAnswer]:
        """Return the chunks before the first token."""

    def chunk(self, step: Step) -> answers.BaseAnswer:
        """Return the chunk of one token."""

    def ending(self, reason: answers.FinishReason) -> answers.BaseAnswer:
        """Return the chunk that says why the text ends."""

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        """Return the last chunk, which counts the tokens of the request."""

    def whole(self, tokens: list[Token], reason: answers.FinishReason, usage: answers.Usage) -> answers.BaseAnswer:
        """Return the whole answer at once, for a client that wants no stream."""


@dataclass
class ChatFormat:
    """The format of answers to messages."""

    label: Label
    decoder: TokenDecoder
    logprobs: bool

    def opening(self) -> list[answers.BaseAnswer]:
        return [self._chunk(answers.Delta(role="assistant", content=""))]

    def chunk(self, step: Step) -> answers.BaseAnswer:
        delta = answers.Delta(content=step.token.text)
        return self._chunk(delta, self._logprobs([step.token]), mark=answers.RecycledToken.of(step))

    def ending(self, reason: answers.FinishReason) -> answers.BaseAnswer:
        return self._chunk(answers.Delta(), reason=reason)

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        return answers.ChatChunk(**self.label.fields, choices=[], usage=usage)

    def whole(self, tokens: list[Token], reason: answers.FinishReason, usage: answers.Usage) -> answers.BaseAnswer:
        message = answers.AnswerMessage(content="".join(token.text for token in tokens))
        choice = answers.ChatChoice(message=message, logprobs=self._logprobs(tokens), finish_reason=reason)
        return answers.ChatAnswer(**self.label.fields, choices=[choice], usage=usage)

    def _chunk(
        self,
        delta: answers.Delta,
        logprobs: answers.ChatLogprobs | None = None,
        reason: answers.FinishReason | None = None,
        mark: answers.RecycledToken | None = None,
    ) -> answers.BaseAnswer:
        choice = answers.ChatChunkChoice(delta=delta, logprobs=logprobs, finish_reason=reason)
        return answers.ChatChunk(**self.label.fields, choices=[choice], recycle=mark)

    def _logprobs(self, tokens: list[Token]) -> answers.ChatLogprobs | None:
        if not self.logprobs:
            return None
        return answers.ChatLogprobs(
            content=[
                answers.TokenLogprob(**self._token(token.id, token.logprob), top_logprobs=self._alternatives(token))
                for token in tokens
            ]
        )

    def _alternatives(self, token: Token) -> list[answers.TokenText]:
        return [answers.TokenText(**self._token(id_, logprob)) for id_, logprob in token.top_logprobs or ()]

    def _token(self, id_: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.decoder.text(id_), "logprob": finite(logprob), "bytes": self.decoder.bytes(id_)}


@dataclass
class TextFormat:
    """The format of continued text."""

    label: Label
    decoder: TokenDecoder
    logprobs: bool
    _written: int = 0

    def opening(self) -> list[answers.BaseAnswer]:
        return []

    def chunk(self, step: Step) -> answers.BaseAnswer:
        return self._answer(step.token.text, self._logprobs([step.token]), mark=answers.RecycledToken.of(step))

    def ending(self, reason: answers.FinishReason) -> answers.BaseAnswer:
        return self._answer("", reason=reason)

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        return answers.TextAnswer(**self.label.fields, choices=[], usage=usage)

    def whole(self, tokens: list[Token], reason: answers.FinishReason, usage: answers.Usage) -> answers.BaseAnswer:
        text = "".join(token.text for token in tokens)
        return self._answer(text, self._logprobs(tokens), reason, usage=usage)

    def _answer(
        self,
        text: str,
        logprobs: answers.TextLogprobs | None = None,
        reason: answers.FinishReason | None = None,
        mark: answers.RecycledToken | None = None,
        usage: answers.Usage | None = None,
    ) -> answers.BaseAnswer:
        choice = answers.TextChoice(text=text, logprobs=logprobs, finish_reason=reason)
        return answers.TextAnswer(**self.label.fields, choices=[choice], usage=usage, recycle=mark)

    def _logprobs(self, tokens: list[Token]) -> answers.TextLogprobs | None:
        if not self.logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._written)
            self._written += len(token.text)
        return answers.TextLogprobs(
            tokens=[self.decoder.text(token.id) for token in tokens],
            token_logprobs=[finite(token.logprob) for token in tokens],
            top_logprobs=[self._by_text(token) for token in tokens],
            text_offset=offsets,
        )

    def _by_text(self, token: Token) -> dict[str, float]:
        """Return the likeliest tokens by their text.

        Where several have the same text, such as parts of characters, the likeliest of them stands for all.
        """
        best: dict[str, float] = {}
        for id_, logprob in token.top_logprobs or ():
            best.setdefault(self.decoder.text(id_), finite(logprob))
        return best


def finite(logprob: float | None) -> float:
    """Return a log-probability that JSON can hold."""
    return LOWEST_LOGPROB if logprob is None else max(LOWEST_LOGPROB, logprob)
