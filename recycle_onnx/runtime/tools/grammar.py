"""The grammar of an answer with calls: text until a call begins, and from there on what its format and schema say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from recycle_onnx.runtime.structured import LARK, ONE_SPACE, Grammar, JsonSchema
from recycle_onnx.runtime.tools.call_format import CallFormat
from recycle_onnx.runtime.tools.parameter_grammar import parameter_rules
from recycle_onnx.runtime.tools.parameters import parameters_of
from recycle_onnx.runtime.tools.schema import enforced
from recycle_onnx.runtime.tools.spelling import Speller, escaped
from recycle_onnx.runtime.tools.tool import ToolSet

MOST_CALLS = 16
"""In one answer: a model that cannot find an end is not followed to the end of the context."""
THOUGHT = ("<think>", "</think>")
"""Around what a model thinks before it answers, where its chat template knows them."""
Thought = Literal["none", "possible", "begun"]
"""Whether an answer may begin with a thought, or the prompt has begun one already."""
ANY = "/(.|\\n)*/"


@dataclass(frozen=True)
class CallGrammar(Grammar):
    """A constraint for answers with calls; `schemas` are those of the callable tools, by name."""

    schemas: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def __str__(self) -> str:
        return "the tools' schemas"

    def text(self) -> str:
        """Return the grammar's source."""
        return self.source


class GrammarWriter:
    """A writer of grammars for one format and tokenizer."""

    def __init__(self, form: CallFormat, tokenizer: Tokenizer) -> None:
        self.form = form
        self._speller = Speller(tokenizer, (*form.pieces, *THOUGHT))
        self._spelled = self._speller.spelled

    def write(self, tools: ToolSet, answer: JsonSchema | None = None, thought: Thought = "none") -> CallGrammar:
        """Write the grammar of an answer, whose text `answer` describes where it is no call.

        (Of a format whose trigger counts at the beginning only, calls could not be told from such an answer.)
        """
        schemas = tuple((tool.name, enforced(tool)) for tool in tools.callable)
        rules = [*self._calls(tools, schemas), *self._answer(tools, answer, thought), *self._thought(thought)]
        before = {"none": "", "possible": "(thought space?)? ", "begun": "thought space? "}[thought]
        start = f"start: {before}({self._start(tools, answer)})"
        return CallGrammar("\n".join([f"{LARK} {{}}", start, *rules]) + "\n", self._speller.shown, schemas)

    def _start(self, tools: ToolSet, answer: JsonSchema | None) -> str:
        if not tools.callable:
            return "answer"
        if tools.mode == "required":
            return f"{self._spelled(self.form.trigger)} calls"
        return "answer | begun calls"

    def _answer(self, tools: ToolSet, answer: JsonSchema | None, thought: Thought) -> list[str]:
        """Return the rules of an answer in words, or of `answer`, and of the words before a call."""
        if tools.mode == "required":
            return []
        marked, trigger = self._speller.is_special(self.form.trigger), self._spelled(self.form.trigger)
        if answer is not None:
            described = {**answer.schema, "x-guidance": ONE_SPACE}
            return [f"answer: %json {json.dumps(described)}", f"begun: {trigger}"]
        if marked:
            return [f"answer: TEXT\nTEXT: {ANY}", f"begun: TEXT {trigger}"]
        if self.form.beginning:
            opening = spaced(self.form.trigger)
            without = rf"{ANY} & ~/{opening}(.|\n)*/"
            begun = f"/{opening}/"
        else:
            without = rf"{ANY} & ~/(.|\n)*{escaped(self.form.trigger)}(.|\n)*/"
            before = rf"({ANY} & ~/\s*{THOUGHT[0]}(.|\n)*/)" if thought != "none" else ANY
            return [
                f"answer: TEXT\nTEXT: {ANY if tools.callable else without}",
                f"begun[lazy]: BEFORE {trigger}\nBEFORE: {before}",
            ]
        # Lazy: words end at the first trigger, so whatever follows it has to be a call.
        return [f"answer: TEXT\nTEXT: {ANY if tools.callable else without}", f"begun[lazy]: {begun}"]

    def _thought(self, thought: Thought) -> list[str]:
        """Return the rules of a thought before the answer, of which the prompt may hold the beginning."""
        if thought == "none":
            return []
        begin, end = THOUGHT
        if self._speller.is_special(end):
            opened = "" if thought == "begun" else f"{self._spelled(begin)} "
            return [f"thought: {opened}WORDS {self._spelled(end)}\nWORDS: {ANY}", "space: /\\s+/"]
        opened = "" if thought == "begun" else rf"\s*{begin}"
        return [rf"thought[lazy]: /{opened}(.|\n)*{escaped(end)}/", "space: /\\s+/"]

    def _calls(self, tools: ToolSet, schemas: tuple[tuple[str, Mapping[str, Any]], ...]) -> list[str]:
        """Return the rules of everything after the trigger of the first call."""
        if not schemas:
            return []
        form, more = self.form, MOST_CALLS - 1
        again = f" ({self._spelled(form.between)} call){{0,{more}}}" if tools.parallel else ""
        parts = [self._spelled(form.before_name), f"call{again}", self._spelled(form.end)]
        named = [f"{self._spelled(name + form.before_arguments)} arguments_{n}" for n, (name, _) in enumerate(schemas)]
        return [
            f"calls: {' '.join(part for part in parts if part)}",
            f"call: ({' | '.join(named)}) {self._spelled(form.after_arguments)}".rstrip(),
            *(rule for n, (_, schema) in enumerate(schemas) for rule in self._arguments(n, schema)),
        ]

    def _arguments(self, number: int, schema: Mapping[str, Any]) -> list[str]:
        if self.form.tags is None:
            return [f"arguments_{number}: %json {json.dumps(schema)}"]
        return parameter_rules(number, parameters_of(schema), self.form.tags, self._speller)


def spaced(trigger: str) -> str:
    r"""Return a pattern of a trigger in JSON, such as `{"name": "`, with any white space in its gaps."""
    parts = re.findall(r'"\w+"|[^\s"]|"', trigger)
    return r"\s*" + r"\s*".join(escaped(part) for part in parts)
