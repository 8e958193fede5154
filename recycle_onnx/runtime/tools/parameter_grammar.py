"""The grammar of arguments that stand in tags, one parameter after the other in the order of the schema."""

from __future__ import annotations

import json

from recycle_onnx.runtime.tools.call_format import ParameterTags
from recycle_onnx.runtime.tools.parameters import Parameter
from recycle_onnx.runtime.tools.spelling import Speller, escaped


def parameter_rules(tool: int, parameters: tuple[Parameter, ...], tags: ParameterTags, speller: Speller) -> list[str]:
    """Return the rules of `arguments_N` for tool number N."""
    names = [f"parameter_{tool}_{index}" for index in range(len(parameters))]
    sequence = [name if one.required else f"{name}?" for name, one in zip(names, parameters, strict=True)]
    rules = [f"arguments_{tool}: {' '.join(sequence) or json.dumps('')}"]
    for index, parameter in enumerate(parameters):
        value = f"value_{tool}_{index}"
        before, after = speller.spelled(tags.opening(parameter.name)), speller.spelled(tags.after)
        rules.append(f"{names[index]}: {before} {value} {after}".rstrip())
        rules += _value_rules(value, parameter, tags.after_value, speller)
    return rules


def _value_rules(name: str, parameter: Parameter, end: str, speller: Speller) -> list[str]:
    """Return the rules of a value and the tag after it."""
    if parameter.words is None:
        schema = json.dumps(dict(parameter.schema))
        return [f"{name}: json_{name} {speller.spelled(end)}", f"json_{name}: %json {schema}"]
    terminal = name.upper()
    words = f"({' | '.join(parameter.words.pieces)}) & ~/(.|\\n)*{escaped(end)}(.|\\n)*/"
    ordinary = speller.ordinary_beginning(end)
    if ordinary == end:  # one lexeme with the tag, which ends where the tag first does: words alone would go on into it
        return [f"{name}[lazy]: {terminal} {json.dumps(end)}", f"{terminal}: {words}"]
    tail = f" {json.dumps(ordinary)}" if ordinary else ""
    rest = speller.spelled(end.removeprefix(ordinary))
    return [f"{name}: {terminal} {rest}", f"{terminal}: ({words}){tail}"]
