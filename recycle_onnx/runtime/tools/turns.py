"""Messages with calls and results as a chat template takes them; in words for templates that know no tools.

Templates differ in what they expect, and say so nowhere. So each is tried once with a call, and what it makes of it
decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import ChatTemplate, Message
from recycle_onnx.runtime.tools.call_format import CallFormat
from recycle_onnx.runtime.tools.formats.generic import GENERIC
from recycle_onnx.runtime.tools.tool import Tool, ToolSet, arguments_object

TRIED = Tool("qz0zq", "qz1zq", {"type": "object", "properties": {"qz2zq": {"type": "string"}}})
"""A tool with words that no template has by itself."""
ASKED: Message = {"role": "user", "content": "qz3zq"}
CALLED = ("qz0zq", {"qz2zq": "qz4zq"})
RESULT = "qz5zq"
SHORT_ID = 9
"""Letters and digits of an id in templates that want it so."""
DESCRIPTION = """You can call functions. Each line describes one as JSON:
{tools}

To call a function, answer with nothing but its name and arguments, in this form:
{example}
{several} What the function returns comes in the next message. Where no function helps, answer in words."""
SEVERAL = {True: "Several calls follow each other in the same form.", False: "Call one function at a time."}
EXAMPLE = ("FUNCTION", {"ARGUMENT": "VALUE"})


@dataclass(frozen=True)
class CallStyle:
    """A way in which a template takes an assistant's calls.

    Arguments are objects or JSON, and `content` stands where there are no words.
    """

    objects: bool
    content: str | None


STYLES = tuple(CallStyle(objects, content) for objects in (True, False) for content in (None, ""))
"""In the order in which they are tried."""


class ToolTurns:
    """A template's way with tools; `form` is how its model writes calls."""

    def __init__(self, template: ChatTemplate, form: CallFormat) -> None:
        self._template, self._form = template, form

    def render(self, messages: Sequence[Message], tools: ToolSet, variables: Mapping[str, Any]) -> str:
        """Return the prompt: messages, and the tools that may be called.

        Raises:
            InputError: the template refuses the messages, or a message has calls that are none.
        """
        turns = self._with_calls(_with_names(messages))
        if not tools.callable:
            return self._template.render(turns, **variables)
        if self._takes_tools:
            return self._template.render(turns, **variables, tools=[tool.as_json() for tool in tools.tools])
        return self._template.render(self._told(turns, self._description(tools)), **variables)

    # What the template can do.

    @cached_property
    def _takes_tools(self) -> bool:
        """Whether the template tells its model of tools, in the form that is read here."""
        return self._form is not GENERIC and self._shows([ASKED], TRIED.name, TRIED.description)

    @cached_property
    def takes_several(self) -> bool:
        """Whether an answer in messages may have several calls; some templates refuse that."""
        return self._style is None or self._shows_calls(self._style, 2)

    @cached_property
    def _style(self) -> CallStyle | None:
        """How the template takes calls and results; None where it does not."""
        if self._form is GENERIC:
            return None
        return next((style for style in STYLES if self._shows_calls(style, 1)), None)

    def _shows_calls(self, style: CallStyle, count: int) -> bool:
        name, arguments = CALLED
        calls = [{"id": f"qz6zqqz{index}z", "name": name, "arguments": arguments} for index in range(count)]
        called: Message = {"role": "assistant", "content": None, "tool_calls": calls}
        results: list[Message] = [
            {"role": "tool", "content": RESULT, "tool_call_id": call["id"], "name": name} for call in calls
        ]
        turns = [self._styled(message, style) for message in (ASKED, called, *results)]
        return self._shows(turns, name, arguments["qz2zq"], RESULT)

    @cached_property
    def _takes_system(self) -> bool:
        return self._shows([{"role": "system", "content": RESULT}, ASKED], RESULT)

    def _shows(self, messages: list[Message], *texts: str) -> bool:
        try:
            rendered = self._template.render(messages, tools=[TRIED.as_json()])
        except InputError:
            return False
        return all(text in rendered for text in texts)

    # What is made of messages.

    def _with_calls(self, messages: list[Message]) -> list[Message]:
        if self._style is not None:
            return [self._styled(message, self._style) for message in messages]
        turns: list[Message] = []
        for message in messages:
            turn = self._in_words(message)
            if message["role"] == "tool" and turns and turns[-1].get("results"):
                turns[-1]["content"] += f"\n{turn['content']}"
            else:
                turns.append(turn)
        return [{name: value for name, value in turn.items() if name != "results"} for turn in turns]

    def _styled(self, message: Message, style: CallStyle) -> Message:
        """Return a message with calls or a result as the template expects it."""
        if message["role"] == "tool":
            return {**message, "tool_call_id": self._id(message["tool_call_id"])}
        if not message.get("tool_calls"):
            return message
        calls = [self._call(call, style) for call in message["tool_calls"]]
        return {**message, "content": message.get("content") or style.content, "tool_calls": calls}

    def _call(self, call: Mapping[str, Any], style: CallStyle) -> dict[str, Any]:
        arguments: Any = call["arguments"] if style.objects else json.dumps(call["arguments"], ensure_ascii=False)
        return {
            "id": self._id(call["id"]),
            "type": "function",
            "function": {"name": call["name"], "arguments": arguments},
        }

    def _id(self, id_: str) -> str:
        fits = not self._form.short_ids or (len(id_) == SHORT_ID and id_.isascii() and id_.isalnum())
        return id_ if fits else hashlib.sha256(id_.encode()).hexdigest()[:SHORT_ID]

    def _in_words(self, message: Message) -> Message:
        if message["role"] == "tool":
            text = f"Result of {message['name']}: {message['content']}"
            return {"role": "user", "content": text, "results": True}
        if not message.get("tool_calls"):
            return message
        calls = self._form.written([(call["name"], call["arguments"]) for call in message["tool_calls"]])
        words = f"{message['content']}\n" if message.get("content") else ""
        return {"role": "assistant", "content": words + calls}

    def _description(self, tools: ToolSet) -> str:
        lines = (json.dumps(tool.as_json()["function"], ensure_ascii=False) for tool in tools.tools)
        example = self._form.written([EXAMPLE])
        return DESCRIPTION.format(tools="\n".join(lines), example=example, several=SEVERAL[bool(tools.parallel)])

    def _told(self, turns: list[Message], description: str) -> list[Message]:
        """Return the turns with the description in the system's, or in the first one where there is none."""
        first = turns[0]
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{description}"}, *turns[1:]]
        if self._takes_system or first["role"] != "user":
            return [{"role": "system", "content": description}, *turns]
        return [{**first, "content": f"{description}\n\n{first['content']}"}, *turns[1:]]


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose calls are plain (id, name, arguments) and whose results say of which function they are."""
    names: dict[str, str] = {}
    turns = []
    for message in messages:
        turn = dict(message)
        if calls := turn.pop("tool_calls", None):
            turn["tool_calls"] = [_plain_call(call) for call in calls]
            names |= {call["id"]: call["name"] for call in turn["tool_calls"]}
        elif turn["role"] == "tool":
            turn["tool_call_id"] = str(turn.get("tool_call_id") or "")
            turn["name"] = turn.get("name") or names.get(turn["tool_call_id"], "a function")
        turns.append(turn)
    return turns


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = arguments_object(function.get("arguments"))
    return {"id": str(call.get("id") or ""), "name": function["name"], "arguments": arguments}
