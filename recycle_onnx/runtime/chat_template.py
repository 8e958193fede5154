"""Messages to the text that a model was trained to answer: its own chat template, or turns as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from recycle_onnx.errors import InputError
from recycle_onnx.extras import install_command
from recycle_onnx.files import read_json, read_text
from recycle_onnx.tokenizer import special_tokens
from recycle_onnx.untrusted import check_regular

Message = dict[str, Any]
"""`role` (`system`, `user` or `assistant`) and `content`, a text; a template may know more fields."""
PLAIN = "plain"
"""The name of the template that continues a text: for models without one of their own."""
TOOL_USE = "tool_use"
"""What models with several templates call the one that knows tools, as transformers expects it."""
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What templates may mention by these names, as in transformers."""


class Renderer(Protocol):
    """A function of messages; variables of one rendering come beside those that the template always has."""

    def __call__(self, messages: Sequence[Message], **variables: Any) -> str:
        """Return the text of the messages, and the beginning of an answer.

        Raises:
            InputError: the template refuses the messages.
        """
        ...


@dataclass(frozen=True)
class ChatTemplate:
    """A template that turns messages into a prompt. `name` is the template's, `plain` for a model without one.

    `text` is what the template consists of, in jinja; empty for `plain`.

    A text that a template of the model's own made brings its special tokens along (`special_tokens` is false: the
    tokenizer adds none). `stops` end an answer in which the model goes on with the user's turn itself.
    """

    name: str
    render: Renderer = field(repr=False)
    special_tokens: bool = False
    stops: tuple[str, ...] = field(default=())
    text: str = field(default="", repr=False)

    def frames(self, *roles: str) -> list[str] | None:
        """Return what the template puts before the text of each message, for one message of each of the roles.

        The answer is None where the template leaves a message's text out, or changes it.

        Raises:
            InputError: the template refuses such messages.
        """
        marks = [f"qz{number}zq" for number in range(len(roles))]
        text = self.render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
        frames = []
        for mark in marks:
            before, there, text = text.partition(mark)
            if not there:
                return None
            frames.append(before)
        return frames

    @classmethod
    def find(
        cls, folder: Path, name: str | None = None, variables: Mapping[str, Any] = MappingProxyType({})
    ) -> ChatTemplate:
        """Return the bundle's template of that name (`plain` always exists); None takes its default one.

        `variables` are passed to the template, `{'enable_thinking': False}` for instance.

        Raises:
            InputError: no such template, one that is no jinja, or jinja2 is not installed.
        """
        known = _templates(folder)
        name = name or ("default" if known else PLAIN)
        if name == PLAIN:
            return cls(PLAIN, plain, special_tokens=True, stops=("\nUser:",))
        if name not in known:
            raise InputError(f"chat template {name!r} is not known; {folder} has: {', '.join(sorted([*known, PLAIN]))}")
        context = {**special_tokens(folder / CONFIG, SPECIAL_TOKENS), "tools": None, "documents": None, **variables}
        return cls(name, _renderer(known[name], f"{folder}: chat template {name!r}", context), text=known[name])

    @classmethod
    def for_tools(cls, folder: Path) -> ChatTemplate:
        """Return the bundle's template for messages with tools: the one that is called so, or else its default one.

        Raises:
            InputError: as for `find`.
        """
        return cls.find(folder, TOOL_USE if TOOL_USE in _templates(folder) else None)


def has_template(folder: Path) -> bool:
    """Tell whether the model in `folder` has a chat template of its own.

    Raises:
        InputError: a file that may hold it is damaged.
    """
    return bool(_templates(folder))


def check_message(message: object) -> Message:
    """Give a message back that has role and content, both strings.

    Raises:
        InputError: it has not; where tool calls or parts stand in their place, it says so.
    """
    if not isinstance(message, Mapping):
        raise InputError(f"a message is {message!r}; expected an object with role and content, both strings")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InputError(f"a message has role {role!r}; expected an object with role and content, both strings")
    if message.get("tool_calls") or message.get("function_call"):
        raise InputError("a message has tool calls, which are not supported; expected its content, a text, alone")
    if isinstance(content, list):
        raise InputError("a message has its content in parts; expected role and content, both strings: join its texts")
    if not isinstance(content, str):
        raise InputError(f"a message has content {content!r}; expected an object with role and content, both strings")
    return dict(message)


def plain(messages: Sequence[Message], **_variables: Any) -> str:
    """Render messages for models that were trained on text alone: each turn follows the speaker's name."""
    turns = [_turn(message) for message in messages]
    return "".join(f"{turn}\n" for turn in turns) + "Assistant:"


def _turn(message: Message) -> str:
    content = str(message["content"])
    if message["role"] == "system":
        return f"{content}\n"
    gap = "" if content[:1].isspace() else " "  # an answer has its own: it began after "Assistant:"
    return f"{message['role'].capitalize()}:{gap}{content}"


def _templates(folder: Path) -> dict[str, str]:
    """Return templates by name: a file of its own comes before the tokenizer's config, as in transformers."""
    path = folder / CONFIG
    configured = read_json(path).get("chat_template") if path.exists() else None
    if (folder / "chat_template.jinja").exists():
        check_regular(folder / "chat_template.jinja")
        configured = read_text(folder / "chat_template.jinja")
    if isinstance(configured, list):
        return dict(_named_template(template, path) for template in configured)
    if not isinstance(configured, str | None):
        raise InputError(f"{path}: chat_template is {configured!r:.100}; expected a text, or a list of named ones")
    return {} if configured is None else {"default": configured}


def _named_template(template: object, path: Path) -> tuple[str, str]:
    if isinstance(template, Mapping):
        name, text = template.get("name"), template.get("template")
        if isinstance(name, str) and isinstance(text, str):
            return name, text
    raise InputError(f"{path}: chat_template is a list; expected objects with name and template")


def _renderer(text: str, where: str, context: dict[str, Any]) -> Renderer:
    try:
        from recycle_onnx.runtime.templates.jinja import compiled
    except ImportError as error:
        raise InputError(f"{where} needs jinja2: {install_command('chat')}") from error
    render = compiled(text, where)

    def rendered(messages: Sequence[Message], **variables: Any) -> str:
        values = {"add_generation_prompt": True, **context, **variables}
        return render({**values, "messages": [dict(message) for message in messages]})

    return rendered
