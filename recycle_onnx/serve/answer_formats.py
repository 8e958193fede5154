"""The two forms of answers, as messages and as continued text: a generation whole, or in chunks."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from recycle_onnx.runtime.generation import Token
from recycle_onnx.runtime.tools.reader import AnswerPart, AnswerText, CallArguments, CallReader, CallStart
from recycle_onnx.runtime.tools.tool_chat import ToolUse
from recycle_onnx.serve import answers
from recycle_onnx.serve.logprobs import entry_of, finite
from recycle_onnx.serve.token_decoder import TokenDecoder
from recycle_onnx.serve.worker import EndReason, Step


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

    def ending(self, reason: EndReason) -> answers.BaseAnswer:
        """Return the chunk that says why the text ends."""

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        """Return the last chunk, which counts the tokens of the request."""

    def whole(self, tokens: list[Token], reason: EndReason, usage: answers.Usage) -> answers.BaseAnswer:
        """Return the whole answer at once, for a client that wants no stream."""


@dataclass
class ChatFormat:
    """The format of answers to messages; `use` says how one that has tools is read."""

    label: Label
    decoder: TokenDecoder
    logprobs: bool
    use: ToolUse | None = None

    @cached_property
    def reader(self) -> CallReader | None:
        """The reader of the answer's calls, to be asked for once there are tokens: then all is known that it needs."""
        return None if self.use is None else self.use.reader()

    def opening(self) -> list[answers.BaseAnswer]:
        return [self._chunk(answers.Delta(role="assistant", content="" if self.use is None else None))]

    def chunk(self, step: Step) -> answers.BaseAnswer:
        text = step.token.text
        delta = answers.Delta(content=text) if self.reader is None else as_delta(self.reader.push(text))
        return self._chunk(delta, self._logprobs([step.token]), mark=answers.RecycledToken.of(step))

    def ending(self, reason: EndReason) -> answers.BaseAnswer:
        if self.reader is None:
            return self._chunk(answers.Delta(), reason=reason)
        delta = as_delta(self.reader.end())
        return self._chunk(delta, reason=self.reader.finish_reason(reason))

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        return answers.ChatChunk(**self.label.fields, choices=[], usage=usage)

    def whole(self, tokens: list[Token], reason: EndReason, usage: answers.Usage) -> answers.BaseAnswer:
        message = self._message("".join(token.text for token in tokens))
        ended = reason if self.reader is None else self.reader.finish_reason(reason)
        choice = answers.ChatChoice(message=message, logprobs=self._logprobs(tokens), finish_reason=ended)
        return answers.ChatAnswer(**self.label.fields, choices=[choice], usage=usage)

    def _message(self, text: str) -> answers.AnswerMessage:
        if self.reader is None:
            return answers.AnswerMessage(content=text)
        self.reader.push(text)
        self.reader.end()
        calls = [answers.CallInAnswer.model_validate(call.as_json()) for call in self.reader.calls]
        return answers.AnswerMessage(
            content=None if calls and not self.reader.text else self.reader.text, tool_calls=calls
        )

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
        return answers.ChatLogprobs(content=[entry_of(token, self.decoder) for token in tokens])


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

    def ending(self, reason: EndReason) -> answers.BaseAnswer:
        return self._answer("", reason=reason)

    def usage(self, usage: answers.Usage) -> answers.BaseAnswer:
        return answers.TextAnswer(**self.label.fields, choices=[], usage=usage)

    def whole(self, tokens: list[Token], reason: EndReason, usage: answers.Usage) -> answers.BaseAnswer:
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


def as_delta(parts: list[AnswerPart]) -> answers.Delta:
    """Return what became certain of an answer with tools as a chunk has it; nothing of it may be."""
    text = "".join(part.text for part in parts if isinstance(part, AnswerText))
    calls: dict[int, answers.CallDelta] = {}
    for part in parts:
        if isinstance(part, CallStart):
            function = answers.FunctionDelta(name=part.name, arguments="")
            calls[part.index] = answers.CallDelta(index=part.index, id=part.id, type="function", function=function)
        elif isinstance(part, CallArguments):
            call = calls.setdefault(part.index, answers.CallDelta(index=part.index, function=answers.FunctionDelta()))
            call.function.arguments = (call.function.arguments or "") + part.text
    return answers.Delta(content=text or None, tool_calls=list(calls.values()) or None)
