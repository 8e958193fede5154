"""What may be called, and what was called: plain data, whatever interface it came through."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recycle_onnx.errors import InputError

Mode = Literal["none", "auto", "required"]
"""Whether the model calls nothing, what it likes, or at least one function."""
NAME = r"[A-Za-z0-9_.:/-]{1,128}"
"""A function's name: OpenAI's characters, and those that collections of tools put between name and origin."""


def _nothing() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: its name, what it does, and the JSON schema of its arguments, an object.

    The arguments of a `strict` one follow every keyword of the schema, or the schema is refused. Otherwise keywords
    that llguidance does not know are left out of what is enforced.

    Raises:
        InputError: a name with other characters, or parameters that describe no object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=_nothing)
    strict: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and re.fullmatch(NAME, self.name)):
            raise InputError(f"a tool's name is {self.name!r:.100}; expected 1 to 128 letters, digits or _.:/-")
        if not isinstance(self.description, str):
            raise InputError(f"the description of tool {self.name!r} is {self.description!r:.100}; expected a text")
        if not describes_object(self.parameters):
            raise InputError(
                f"the parameters of tool {self.name!r} are {self.parameters!r:.100}; "
                "expected the JSON schema of an object"
            )

    @classmethod
    def of(cls, value: Tool | Mapping[str, Any]) -> Tool:
        """Read a tool as OpenAI and transformers write it, the function alone or in an object of its type.

        Raises:
            InputError: it is none.
        """
        if isinstance(value, Tool):
            return value
        function = value.get("function", value) if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise InputError(f"a tool is {value!r:.100}; expected an object with name, description and parameters")
        known = {name: function[name] for name in ("name", "description", "parameters", "strict")
                 if function.get(name) is not None}  # fmt: skip
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}


def describes_object(schema: object) -> bool:
    """Tell whether a JSON schema may describe an object: its type is that, or not said."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


@dataclass(frozen=True)
class ToolSet:
    """The tools of one answer, and how they may be used.

    `mode` says whether something must be called, `allowed` what may be (None: every tool). `parallel` lets one answer
    have several calls; None does so where the model's chat template shows how it writes calls. (One that is only told
    in words repeats itself.)

    Raises:
        InputError: two tools of one name, an `allowed` name that no tool has, or nothing to call where it is required.
    """

    tools: tuple[Tool, ...] = ()
    mode: Mode = "auto"
    allowed: tuple[str, ...] | None = None
    parallel: bool | None = None

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"two tools are called {twice[0]!r}; expected names that differ")
        if unknown := [name for name in self.allowed or () if name not in names]:
            raise InputError(f"no tool is called {unknown[0]!r:.140}; expected one of: {', '.join(names) or 'none'}")
        if self.mode == "required" and not self.callable:
            raise InputError("a call is required, and there is no tool to call")

    @classmethod
    def of(
        cls, tools: Sequence[Tool | Mapping[str, Any]], choice: str = "auto", parallel: bool | None = None
    ) -> ToolSet:
        """Make a set of tools; `choice` is a mode, or the name of the one tool to call, once.

        Raises:
            InputError: a tool that is none, or the name of no tool.
        """
        own = tuple(Tool.of(tool) for tool in tools)
        if choice in ("none", "auto", "required"):
            return cls(own, choice, parallel=parallel)  # type: ignore[arg-type]
        return cls(own, "required", (choice,), parallel=False)

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that the answer may call."""
        if self.mode == "none":
            return ()
        return tuple(tool for tool in self.tools if self.allowed is None or tool.name in self.allowed)


@dataclass(frozen=True)
class ToolCall:
    """A call in an answer; `arguments` are JSON, as the model wrote them, and perhaps cut short."""

    id: str
    name: str
    arguments: str

    def as_json(self) -> dict[str, Any]:
        """Return the call as messages have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def arguments_object(arguments: object) -> dict[str, Any]:
    """Return the arguments of a call in a message, which are an object or JSON of one; "" is none.

    Raises:
        InputError: they are something else.
    """
    if isinstance(arguments, Mapping):
        return dict(arguments)
    try:
        value = json.loads(arguments or "{}") if isinstance(arguments, str) else None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"the arguments of a tool call are {arguments!r:.100}; expected JSON of an object")
    return value
