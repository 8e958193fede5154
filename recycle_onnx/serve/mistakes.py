"""What is wrong with a request, in one line: of all that pydantic has against it, the mistake that matters."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from recycle_onnx.runtime.settings import ALIASES, FOREIGN, SETTINGS
from recycle_onnx.serve.errors import ApiError

STATEFUL = ("previous_response_id", "conversation", "context")
"""Fields for servers that keep what was said."""
MOST_MISTAKES = 100
"""Mistakes of a body that are looked at one by one, to name the one that matters: each takes microseconds."""
KEPT = "nothing is kept between requests: send the whole conversation each time"
UNKNOWN = {
    "functions": ("unsupported_value", "functions are not served here: use tools"),
    "suffix": ("unsupported_parameter", "suffix: a text is continued, not filled in: leave it out"),
    **{name: ("unsupported_parameter", f"{name}: {KEPT}") for name in STATEFUL},
}
"""Codes and messages of fields that are unknown here for a reason."""
MOST_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens", "num_predict")
"""What APIs call `max_new_tokens`, the name that is meant first."""
WANTED = {
    "too_long": "at most {max_length} items",
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
    "dict_type": "a JSON object",
    "string_too_short": "at least one character",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": "a JSON object with {discriminator}",
}
"""What was expected, by pydantic's name of a mistake, where its own words are long or riddles."""
_AS_JSON = {"True": "true", "False": "false", "None": "null"}
LONGEST = 60
"""Characters of a value in an error."""


def first_mistake(error: ValidationError, data: object, kind: type[BaseModel]) -> ApiError:
    """Return the mistake that matters in `data`, which was to be a `kind`.

    Where a field may be several things, it is that of the alternative that came furthest.
    """
    if error.error_count() > MOST_MISTAKES:
        return ApiError(400, "invalid_value", f"the body has {error.error_count()} mistakes; see /openapi.json")
    errors = error.errors(include_url=False)
    fits = _deepest(errors, data)
    # of alternatives those that are at least of the right type: a list that is too long is no string either
    field = fits[0]["loc"][:1]
    typed = [one for one in errors if one["loc"][:1] == field and _is_typed(one)]
    fits = _of_right_kind(errors, _deepest(typed, data) if typed else fits)
    first = fits[0]
    param = _name(_path(first, data))
    if first["type"] == "extra_forbidden":
        unknown = ("unsupported_parameter", f"{param} is not served here: {_advice(_path(first, data), kind)}")
        code, message = UNKNOWN.get(param, unknown)
        return ApiError(400, code, message, param)
    if first["type"] == "missing":
        return ApiError(400, "missing_parameter", f"{param} is missing", param)
    if param == "best_of":
        return ApiError(400, "unsupported_value", "best_of must be 1: no answers are made to be thrown away", param)
    tagged = first["type"] == "union_tag_invalid"
    shown = ("of the type " if tagged else "") + _shown(first["ctx"]["tag"] if tagged else first["input"])
    wanted = " or ".join(dict.fromkeys(_wanted(one) for one in fits if _name(_path(one, data)) == param))
    return ApiError(400, "invalid_value", f"{param or 'the body'} is {shown}; expected: {wanted}", param or None)


def _shown(value: object) -> str:
    """Return a value as JSON has it, but for a text's quotes, which are those of our messages; a long one is cut."""
    shown = repr(value) if isinstance(value, str) else to_json(value).decode()
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}…"


def _advice(path: list[int | str], kind: type[BaseModel]) -> str:
    """Say what to do about an unknown field: to use the one that was meant, if one was."""
    name, kinds = str(path[-1]), [kind]
    for step in path[:-1]:
        kinds = kinds if isinstance(step, int) else [inner for one in kinds for inner in _kinds_of(one, step)]
    known = [field for one in kinds for field in _fields_of(one)]
    if near := _near(name, known) or get_close_matches(name, known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}?"
    # a setting may have its place in an object beside
    objects = [(field, inner) for one in kinds for field in _fields_of(one) for inner in _kinds_of(one, field)]
    beside = [f"{field}.{near[0]}" for field, inner in objects if (near := _near(name, _fields_of(inner)))]
    return f"did you mean {beside[0]}?" if beside and _meant(name) in SETTINGS else "leave it out"


def _meant(name: str) -> str:
    """Return what we call a setting that others call otherwise."""
    return ALIASES.get(name, FOREIGN.get(name, name))


def _near(name: str, known: list[str]) -> list[str]:
    """Return those of the known fields that are what was meant, under whatever name."""
    meant = _meant(name)
    return [most for most in MOST_TOKENS if meant == "max_new_tokens" and most in known] or [meant] * (meant in known)


def _fields_of(kind: type[BaseModel]) -> list[str]:
    return [field.alias or own for own, field in kind.model_fields.items()]


def _kinds_of(kind: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """Return the kinds of objects that a field may hold, itself or in a list."""
    waiting = [field.annotation for own, field in kind.model_fields.items() if (field.alias or own) == name]
    kinds = []
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kinds.append(annotation)
        waiting += get_args(annotation)
    return kinds


def _is_typed(error: ErrorDetails) -> bool:
    """Tell whether a value is of the type that was expected, and wrong nevertheless."""
    if error["type"] == "literal_error":
        wanted = error["ctx"]["expected"]
        return type(error["input"]) is (str if wanted[0] == "'" else bool if wanted in ("True", "False") else int)
    return not error["type"].endswith("_type")


def _of_right_kind(errors: list[ErrorDetails], fits: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors of objects of the right `type`; if there are none, those of the types themselves."""
    types = [one for one in errors if one["type"] == "literal_error" and one["loc"][-1] == "type"]
    wrong = {one["loc"][:-1] for one in types}
    return [one for one in fits if one["loc"][:-1] not in wrong] or [one for one in fits if one in types] or fits


def _deepest(errors: list[ErrorDetails], data: object) -> list[ErrorDetails]:
    """Return the errors that lie deepest in what was sent."""
    depths = [len(_path(error, data)) for error in errors]
    return [error for error, depth in zip(errors, depths, strict=True) if depth == max(depths)]


def _wanted(error: ErrorDetails) -> str:
    """Say in the fewest words what pydantic expected."""
    context = error.get("ctx", {})
    if error["type"] == "too_short":
        return "at least one item" if context["min_length"] == 1 else f"at least {context['min_length']} items"
    if wanted := WANTED.get(error["type"]):
        return wanted.format(**context)
    if error["type"] == "literal_error":
        return re.sub(r"\b(True|False|None)\b", lambda word: _AS_JSON[word[0]], context["expected"])
    return error["msg"].removeprefix("Input should be ")


def _path(error: ErrorDetails, data: object) -> list[int | str]:
    """Return where an error lies in what was sent, without pydantic's names for the alternatives of a union."""
    path: list[int | str] = []
    for step in error["loc"]:
        if _has(data, step):
            data = data[step]  # type: ignore[index]
            path.append(step)
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _has(data: object, step: int | str) -> bool:
    if isinstance(data, list):
        return isinstance(step, int) and step < len(data)
    return isinstance(data, dict) and step in data


def _name(path: list[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
