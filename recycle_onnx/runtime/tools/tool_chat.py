"""Tools for one model, whole: the prompt that offers them, the grammar of the answer, and who reads its calls.

chat = ToolChat(ChatTemplate.for_tools(folder), tokenizer)
tools = ToolSet.of([{"name": "get_weather", "parameters": {…}}], "auto")
prompt, use = chat.render(messages, tools), chat.use(tools)
reader = use.reader()
for token in model.stream(ids_of(prompt), constraint=use.grammar):
    parts = reader.push(token.text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import ChatTemplate, Message
from recycle_onnx.runtime.structured import JsonSchema
from recycle_onnx.runtime.tools.formats import format_of
from recycle_onnx.runtime.tools.formats.generic import GENERIC
from recycle_onnx.runtime.tools.grammar import THOUGHT, CallGrammar, GrammarWriter, Thought
from recycle_onnx.runtime.tools.parameters import check_followed
from recycle_onnx.runtime.tools.reader import CallReader
from recycle_onnx.runtime.tools.tool import ToolSet
from recycle_onnx.runtime.tools.turns import ToolTurns

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
NO_TOOLS = ToolSet()


class ToolUse:
    """One answer with tools: the grammar that it follows, and readers of its text.

    Templates are rendered when `grammar` is first asked for, not before.
    """

    def __init__(
        self,
        chat: ToolChat,
        tools: ToolSet,
        answer: JsonSchema | None = None,
        variables: Mapping[str, Any] = NO_VARIABLES,
    ) -> None:
        """Prepare an answer in the way of `chat`; `answer` describes it where it is no call.

        Raises:
            InputError: an `answer` that could not be told from calls, or a strict tool that the format cannot follow.
        """
        chat.check(tools)
        if answer is not None and tools.mode == "auto" and chat.form.beginning:
            raise InputError(
                "a response format and tools at once need a chat template that marks calls, which this model has not: "
                "leave one of them out, or have a call required or none"
            )
        self.tools, self._chat, self._answer, self._variables = tools, chat, answer, variables

    @cached_property
    def grammar(self) -> CallGrammar:
        """The constraint of the answer.

        Raises:
            InputError: the template refuses its variables.
        """
        return self._chat.writer.write(self._chat.decided(self.tools), self._answer, self._thought)

    @cached_property
    def _thought(self) -> Thought:
        return self._chat.thought(self._variables)

    def prepare(self) -> None:
        """Render what readers have to know, which otherwise `grammar` does.

        Raises:
            InputError: the template refuses its variables.
        """
        _ = self._thought

    def reader(self) -> CallReader:
        """Return a reader of one answer."""
        described = self._answer is not None
        return CallReader(self._chat.form, self.tools, thought=self._thought, described=described)


class ToolChat:
    """A chat template with tools, and the tokenizer beside it. Safe for any thread."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template, self.form = template, format_of(template.text)
        self._turns = ToolTurns(template, self.form)
        self.writer = GrammarWriter(self.form, tokenizer)

    @property
    def thinks(self) -> bool:
        """Whether the template knows thoughts."""
        return THOUGHT[1] in self.template.text

    def render(
        self, messages: Sequence[Message], tools: ToolSet = NO_TOOLS, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> str:
        """Return the prompt.

        Args:
            messages: turns as chat templates have them; an assistant's may have `tool_calls`, and those of role `tool`
                are results, with the `tool_call_id` of their call.
            tools: those that the answer may call.
            variables: passed to the template.

        Raises:
            InputError: the template refuses the messages, or calls in them are none.
        """
        return self._turns.render(messages, self.decided(tools), variables)

    def use(
        self, tools: ToolSet, answer: JsonSchema | None = None, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> ToolUse:
        """Return how an answer is constrained and read; see `ToolUse`.

        Raises:
            InputError: an `answer` that could not be told from calls, or a strict tool that the format cannot follow.
        """
        return ToolUse(self, tools, answer, variables)

    def check(self, tools: ToolSet) -> None:
        """Refuse strict tools of which the format cannot follow a keyword.

        Raises:
            InputError: there is one.
        """
        if self.form.tags is not None:
            for tool in tools.callable:
                check_followed(tool)

    def decided(self, tools: ToolSet) -> ToolSet:
        """Return tools that say whether an answer may have several calls.

        It may not where the template refuses them in a message, nor, unless asked for, where it shows no format.
        """
        wanted = self.form is not GENERIC if tools.parallel is None else tools.parallel
        return replace(tools, parallel=wanted and self._turns.takes_several)

    def thought(self, variables: Mapping[str, Any]) -> Thought:
        """Return whether answers begin with a thought: a template may begin one, or end it to have none.

        Raises:
            InputError: the template refuses its variables.
        """
        begin, end = THOUGHT
        if not self.thinks:
            return "none"
        prompt = self.template.render([{"role": "user", "content": "-"}], **variables).rstrip()
        return "begun" if prompt.endswith(begin) else "none" if prompt.endswith(end) else "possible"
