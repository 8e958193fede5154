"""Reading calls while they are written: an answer's text in pieces, and what each of them makes certain.

The grammar of `grammar.py` sees to it that what begins like a call is one, so nothing here has to guess.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from recycle_onnx.runtime.text import overlap
from recycle_onnx.runtime.tools.arguments import ArgumentsReader, JsonArguments, TaggedArguments
from recycle_onnx.runtime.tools.call_format import CallFormat
from recycle_onnx.runtime.tools.grammar import THOUGHT, Thought, spaced
from recycle_onnx.runtime.tools.parameters import parameters_of
from recycle_onnx.runtime.tools.schema import enforced
from recycle_onnx.runtime.tools.tool import Tool, ToolCall, ToolSet

EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class AnswerText:
    """A piece of the answer's words."""

    text: str


@dataclass(frozen=True)
class AnswerThought(AnswerText):
    """A piece of what the model thinks before it answers, which is text to those who do not tell them apart.

    A `mark` is what stands before or after the thought.
    """

    is_mark: bool = False


@dataclass(frozen=True)
class CallStart:
    """The beginning of call number `index`: from here on its name is certain."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of call number `index`, as JSON: where the model writes that, as it wrote them."""

    index: int
    text: str


AnswerPart = AnswerText | CallStart | CallArguments
State = Callable[[], Iterator[AnswerPart]]


def new_call_id() -> str:
    """Return an id for a call, as OpenAI's look."""
    return f"call_{uuid.uuid4().hex[:24]}"


class CallReader:
    """A reader of one answer: `push` its text as it comes, then `end`; `text` and `calls` are what it had so far.

    White space before a call is no part of the answer's words. Of a call that is cut short the arguments are kept as
    far as they came; a name that is cut short never shows.
    """

    def __init__(self, form: CallFormat, tools: ToolSet, *, thought: Thought = "none", described: bool = False) -> None:
        """Begin an answer; `thought` is what its grammar was written for.

        An answer that is `described` by a schema has no words before a call.
        """
        self.text, self.calls = "", list[ToolCall]()
        self.complete = True
        """Whether no call is cut short so far."""
        self._form, self._held = form, ""
        self._first = {form.opening(tool.name): tool for tool in tools.callable}
        self._next = {form.opening(tool.name, first=False): tool for tool in tools.callable}
        self._openings = self._first
        self._anywhere = not (form.beginning or described)
        self._arguments_reader: ArgumentsReader = JsonArguments()
        after = self._opening if tools.mode == "required" else self._words if self._first else self._plain
        self._after_thought: State = after
        self._state: State = {"none": after, "possible": self._thought, "begun": self._inside_thought}[thought]

    def push(self, text: str) -> list[AnswerPart]:
        """Read the next piece of the answer's text; return what is certain now."""
        self._held += text
        parts: list[AnswerPart] = []
        while True:
            state, held = self._state, self._held
            parts += self._kept(state())
            if (self._state, self._held) == (state, held):
                return parts

    def end(self) -> list[AnswerPart]:
        """Return the words that were withheld, now that no more text comes."""
        waiting = self._state in (self._words, self._plain, self._thought, self._inside_thought)
        rest, self._held = (self._held if waiting else ""), ""
        is_thought = self._state == self._inside_thought
        return list(self._kept(iter([AnswerThought(rest)]) if is_thought and rest else self._say(rest)))

    def finish_reason(self, reason: Literal["stop", "length"]) -> EndReason:
        """Return why the answer ended, from why its text did: calls that are whole are a reason of their own."""
        return "tool_calls" if reason == "stop" and self.calls and self.complete else reason

    def _kept(self, parts: Iterator[AnswerPart]) -> Iterator[AnswerPart]:
        """Note what is certain on its way out."""
        for part in parts:
            if isinstance(part, AnswerText):
                self.text += part.text
            elif isinstance(part, CallStart):
                self.calls.append(ToolCall(part.id, part.name, ""))
            else:
                call = self.calls[part.index]
                self.calls[part.index] = ToolCall(call.id, call.name, call.arguments + part.text)
            yield part

    def _say(self, text: str) -> Iterator[AnswerPart]:
        if text:
            yield AnswerText(text)

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    # The states, from the beginning of an answer to its end: each takes from `_held` what it understands.

    def _plain(self) -> Iterator[AnswerPart]:
        """Say everything: there is nothing to call."""
        yield from self._say(self._take(len(self._held)))

    def _thought(self) -> Iterator[AnswerPart]:
        """Look whether the answer begins with a thought."""
        begun = self._held.lstrip()
        if begun.startswith(THOUGHT[0]):
            self._state = self._inside_thought
            yield AnswerThought(self._take(len(self._held) - len(begun) + len(THOUGHT[0])), is_mark=True)
        elif not THOUGHT[0].startswith(begun):
            self._state = self._after_thought

    def _inside_thought(self) -> Iterator[AnswerPart]:
        """Say the thought; nothing in it is a call."""
        end = self._held.find(THOUGHT[1])
        if end >= 0:
            self._state = self._after_thought
            yield AnswerThought(self._take(end))
            yield AnswerThought(self._take(len(THOUGHT[1])), is_mark=True)
        else:
            yield AnswerThought(self._take(len(self._held) - overlap(self._held, THOUGHT[1])))

    def _words(self) -> Iterator[AnswerPart]:
        """Say what comes before the first call, if one comes."""
        start = self._call_start()
        if start is not None:
            yield from self._say(self._take(start).rstrip())
            self._held = self._held.lstrip()
            self._state = self._opening
        elif not self._anywhere and not self._may_begin():
            self._state = self._plain
        elif self._anywhere:
            size = len(self._held) - overlap(self._held, self._form.trigger)
            yield from self._say(self._take(len(self._held[:size].rstrip())))

    def _call_start(self) -> int | None:
        """Return where the first call begins in what is held; None where none is seen."""
        if self._anywhere:
            start = self._held.find(self._form.trigger)
            return None if start < 0 else start
        trigger = spaced(self._form.trigger) if self._form.beginning else r"\s*" + re.escape(self._form.trigger)
        begun = re.match(trigger, self._held)
        if begun is None:
            return None
        self._held = self._form.trigger + self._held[begun.end() :]
        return 0

    def _may_begin(self) -> bool:
        """Tell whether what is held may go on to be a trigger."""
        begun = "".join(self._held.split())
        return "".join(self._form.trigger.split()).startswith(begun)

    def _opening(self) -> Iterator[AnswerPart]:
        """Wait for all that stands before the arguments."""
        held = self._held.lstrip() if self._openings is self._first else self._held
        for opening, tool in self._openings.items():
            if held.startswith(opening) and self._is_whole_name(held[len(opening) :]):
                self._held = held[len(opening) :]
                self._state, self._arguments_reader, self.complete = self._arguments, self._reader_of(tool), False
                yield CallStart(len(self.calls), new_call_id(), tool.name)
                return

    def _is_whole_name(self, rest: str) -> bool:
        """Tell whether a name ends before `rest`: nothing but a tag may mark its end."""
        return bool(self._form.before_arguments) or rest.startswith("<")

    def _reader_of(self, tool: Tool) -> ArgumentsReader:
        form = self._form
        if form.tags is None:
            return JsonArguments()
        return TaggedArguments(parameters_of(enforced(tool)), form.tags, form.after_arguments)

    def _arguments(self) -> Iterator[AnswerPart]:
        piece, self._held = self._arguments_reader.read(self._held)
        if self._arguments_reader.closed:
            self._state = self._closing
        if piece:
            yield CallArguments(len(self.calls) - 1, piece)

    def _closing(self) -> Iterator[AnswerPart]:
        """Wait for all that stands after the arguments."""
        if self._held.startswith(self._form.after_arguments):
            self._take(len(self._form.after_arguments))
            self._state, self._openings, self.complete = self._opening, self._next, True
        yield from ()
