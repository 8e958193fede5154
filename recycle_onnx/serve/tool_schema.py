"""What a client may send of tools: those that may be called, which must be, and calls in messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.tools.tool import NAME, Mode, Tool, ToolSet, arguments_object, describes_object
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.request_object import RequestObject

MOST_TOOLS = 128
"""As many as OpenAI's API allows."""
SomeTools = Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)
FunctionName = Annotated[str, Field(pattern=f"^{NAME}$")]


class FunctionDescription(RequestObject):
    """A function: its name, what it does, and the JSON schema of its arguments, which has none if left out."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Refuse a schema of which a keyword cannot be enforced.")

    def as_tool(self) -> Tool:
        """Return the tool as the runtime has it."""
        more = {} if self.parameters is None else {"parameters": self.parameters}
        return Tool(self.name, self.description or "", strict=bool(self.strict), **more)


class FunctionTool(RequestObject):
    """A tool; the only kind are functions."""

    type: Literal["function"]
    function: FunctionDescription


class FunctionReference(RequestObject):
    """The name of a function."""

    name: FunctionName


class NamedTool(RequestObject):
    """The one tool to call."""

    type: Literal["function"]
    function: FunctionReference


class AllowedTools(RequestObject):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], SomeTools]


class AllowedChoice(RequestObject):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedChoice
Tools = Annotated[list[FunctionTool], SomeTools]


class CalledFunction(RequestObject):
    """A function that was called, and its arguments as JSON."""

    name: FunctionName
    arguments: str = ""


class CallInMessage(RequestObject):
    """A call in an assistant's message."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_json(self, param: str) -> dict[str, Any]:
        """Return the call as chat templates take it; `param` is where it stands.

        Raises:
            ApiError: 400; its arguments are no JSON object.
        """
        return call_of(self.id, self.function.name, self.function.arguments, f"{param}.function.arguments")


def call_of(id_: str, name: str, arguments: str | dict[str, Any], param: str) -> dict[str, Any]:
    """Return a call as chat templates take it; `param` is where its arguments stand.

    Raises:
        ApiError: 400; they are no JSON object.
    """
    try:
        parsed = arguments_object(arguments)
    except InputError as error:
        raise ApiError(400, "invalid_value", f"{param}: {error}", param) from error
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": parsed}}


Choice = tuple[Mode, tuple[str, ...] | None]
"""Whether something must be called, and the names of what may be, None for all."""


def check_tools(tools: list[FunctionTool] | None, choice: ToolChoice | None) -> None:
    """Refuse tools of chat completions as `check_functions` does.

    Raises:
        ApiError: 400.
    """
    check_functions([tool.function for tool in tools or ()], mode_and_names(choice), ".function")


def check_functions(
    functions: Sequence[FunctionDescription], choice: Choice, inside: str = "", schema: str = "parameters"
) -> None:
    """Refuse tools that cannot be told apart or have no object for arguments, and a choice of what is not there.

    `inside` is where a tool describes its function, and `schema` its field for the arguments.

    Raises:
        ApiError: 400.
    """
    names = [function.name for function in functions]
    counts = Counter(names)
    for index, function in enumerate(functions):
        param = f"tools[{index}]{inside}"
        if counts[function.name] > 1:
            message = f"two tools are called {function.name!r}; expected names that differ"
            raise ApiError(400, "invalid_value", message, f"{param}.name")
        if function.parameters is not None and not describes_object(function.parameters):
            message = f"{param}.{schema} describes no object; expected a JSON schema of type object"
            raise ApiError(400, "invalid_value", message, f"{param}.{schema}")
    mode, chosen = choice
    if mode == "required" and not names:
        raise ApiError(
            400, "invalid_value", "tool_choice asks for a call, and there are no tools: set tools", "tool_choice"
        )
    if unknown := [name for name in chosen or () if name not in names]:
        message = (
            f"tool_choice names {unknown[0]!r}, which is none of the tools: {', '.join(names) or 'there are none'}"
        )
        raise ApiError(400, "invalid_value", message, "tool_choice")


def mode_and_names(choice: ToolChoice | None) -> Choice:
    """Return the mode of a choice, and the names of what may be called, None for all."""
    if isinstance(choice, NamedTool):
        return "required", (choice.function.name,)
    if isinstance(choice, AllowedChoice):
        return choice.allowed_tools.mode, tuple(tool.function.name for tool in choice.allowed_tools.tools)
    return choice or "auto", None


def tool_set(tools: list[FunctionTool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolSet:
    """Return the tools as the runtime has them; a tool that was named is called once."""
    functions = [tool.function for tool in tools or ()]
    several = False if isinstance(choice, NamedTool) else parallel
    return set_of(functions, mode_and_names(choice), several)


def set_of(functions: Iterable[FunctionDescription], choice: Choice, parallel: bool | None) -> ToolSet:
    """Return functions as the runtime has them."""
    return ToolSet(tuple(function.as_tool() for function in functions), *choice, parallel)
