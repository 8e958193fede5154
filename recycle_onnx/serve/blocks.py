"""An answer as blocks that follow each other, for APIs that stream them so: thoughts, words and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from recycle_onnx.runtime.tools.reader import (
    AnswerPart,
    AnswerText,
    AnswerThought,
    CallArguments,
    CallReader,
    CallStart,
)
from recycle_onnx.runtime.tools.tool_chat import ToolUse
from recycle_onnx.serve.worker import EndReason


@dataclass(frozen=True)
class Block:
    """A piece of an answer: words, a thought, or a call with its arguments as JSON in `text`."""

    index: int
    text: str = ""
    call: CallStart | None = None
    is_thought: bool = False

    @property
    def is_words(self) -> bool:
        """Whether it is said to the user."""
        return self.call is None and not self.is_thought

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The arguments of a call; None where they are cut short."""
        try:
            parsed = json.loads(self.text)
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None


class BlockChange(NamedTuple):
    """What became certain of a block: it is opened, has grown by a text, or is closed and whole."""

    kind: Literal["opened", "grown", "closed"]
    block: Block
    text: str = ""


class BlockReader:
    """A reader of one answer, which has one block at least; `blocks` are those so far.

    `use` says how the answer has calls, or thoughts; with `thoughts` these are blocks of their own, otherwise words.
    Around a thought there is no white space.
    """

    def __init__(self, use: ToolUse | None, thoughts: bool = False) -> None:
        self.blocks: list[Block] = []
        self._use, self._thoughts, self._open = use, thoughts, False
        self._space = ""  # of a thought, which is none of it at its end
        self._trims = False  # what follows a thought begins with white space that is nobody's

    @cached_property
    def _reader(self) -> CallReader | None:
        """The reader of calls, to be asked for once there are tokens: then all is known that it needs."""
        return None if self._use is None else self._use.reader()

    def push(self, text: str) -> Iterator[BlockChange]:
        """Read a piece of the answer; yield what it makes certain."""
        yield from self._changes([AnswerText(text)] if self._reader is None else self._reader.push(text))

    def end(self) -> Iterator[BlockChange]:
        """Yield what is certain now that no more text comes."""
        yield from self._changes([] if self._reader is None else self._reader.end())
        if not self.blocks:
            yield from self._begin(Block(0))
        yield from self._close()

    def read(self, text: str) -> list[Block]:
        """Read a whole answer; return its blocks."""
        for _ in (*self.push(text), *self.end()):
            pass
        return self.blocks

    def has_called(self, reason: EndReason) -> bool:
        """Tell whether the answer ended because all its calls are made."""
        return self._reader is not None and self._reader.finish_reason(reason) == "tool_calls"

    def _changes(self, parts: Iterable[AnswerPart]) -> Iterator[BlockChange]:
        for part in parts:
            if isinstance(part, CallStart):
                yield from self._begin(Block(len(self.blocks), call=part))
            elif isinstance(part, CallArguments):
                yield self._grow(part.text)
            elif self._thoughts and isinstance(part, AnswerThought):
                yield from self._think(part)
            else:
                yield from self._say(part.text)

    def _think(self, part: AnswerThought) -> Iterator[BlockChange]:
        if part.is_mark:
            yield from self._close()
            self._trims, self._space = True, ""
            return
        begun = self._open and self.blocks[-1].is_thought
        text = self._space + part.text if begun else part.text.lstrip()
        self._space = text[len(text.rstrip()) :]
        if text := text.rstrip():
            if not begun:
                yield from self._begin(Block(len(self.blocks), is_thought=True))
            yield self._grow(text)

    def _say(self, text: str) -> Iterator[BlockChange]:
        if self._trims:
            text = text.lstrip()
        if not text:
            return
        self._trims = False
        if not (self._open and self.blocks[-1].is_words):
            yield from self._begin(Block(len(self.blocks)))
        yield self._grow(text)

    def _begin(self, block: Block) -> Iterator[BlockChange]:
        yield from self._close()
        self.blocks.append(block)
        self._open = True
        yield BlockChange("opened", block)

    def _grow(self, text: str) -> BlockChange:
        self.blocks[-1] = replace(self.blocks[-1], text=self.blocks[-1].text + text)
        return BlockChange("grown", self.blocks[-1], text)

    def _close(self) -> Iterator[BlockChange]:
        if self._open:
            self._open = False
            yield BlockChange("closed", self.blocks[-1])
