"""Write docs/reference.md: what an application may use, from its docstrings.

    python docs/make_reference.py

griffe reads the package without importing it.
"""

from __future__ import annotations

import re
import textwrap
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import griffe
from griffe import Class, DocstringSectionKind, ExprCall, Function, ParameterKind

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
COLUMNS = 100
INTRODUCTION = """# Reference

Generated from the docstrings by `docs/make_reference.py`. How these are used:
[embedding](embedding.md), [generation](generation.md), [training](training.md),
[modules](modules.md), [evaluation](evaluation.md). Errors are `InputError` for what was given,
`RecycleError` for anything else.
"""
CHAPTERS = {
    "Load and generate": (
        "runtime.loading.load", "runtime.model.Model", "runtime.config.GenerationConfig",
        "runtime.generation.Generation", "runtime.generation.Token", "runtime.generation.Result",
        "runtime.generation.Stats", "runtime.conversation.Conversation", "runtime.structured.JsonSchema",
        "runtime.structured.Regex", "runtime.structured.Grammar", "runtime.decoding.processors.StatefulProcessor",
        "runtime.decoding.processors.Follower", "errors.RecycleError", "errors.InputError", "errors.OvertakenError",
        "errors.TextError", "errors.NotFiniteError",
    ),
    "Make a bundle": (
        "checkpoint.attach.attach", "checkpoint.attach.NewModule",
        "checkpoint.draft_vocabulary.DraftVocabulary", "training.trainer.train",
        "training.options.TrainingOptions", "training.options.Progress", "training.options.TrainingResult",
        "checkpoint.publish.publish", "checkpoint.module.Module", "checkpoint.join.join", "checkpoint.join.Joined",
        "export.exporter.export", "export.exporter.ExportOptions", "export.quantizer.quantize_bundle",
        "export.quantizer.QuantizeOptions", "export.quantize_graph.Quantization",
        "export.calibrated.calibrate.Calibration",
    ),
    "Measure": (
        "evaluation.acceptance.acceptance", "evaluation.acceptance.Acceptance", "evaluation.agreement.agreement",
        "evaluation.agreement.Agreement", "evaluation.perplexity.perplexity", "evaluation.perplexity.Perplexity",
        "evaluation.tasks.tasks", "evaluation.tasks.TaskAccuracy", "bench.run.bench", "bench.run.Options",
        "bench.run.Measurement",
    ),
    "Many prompts": ("batch.Worker", "batch.Request", "batch.Answer"),
}  # fmt: skip
"""The objects of each chapter, by their path in the package."""
RECEIVED = ("Model", "Generation", "Module")
"""Classes whose objects an application is given: how they are made is ours."""
SETTING = "setting"
"""What declares a field with its default, kind and help: recycle_onnx/declaration.py."""
MARKS = {ParameterKind.var_positional: "*", ParameterKind.var_keyword: "**"}


def render() -> str:
    """Render the whole page."""
    package = griffe.load("recycle_onnx", search_paths=[ROOT], docstring_parser="google", allow_inspection=False)
    shown = {name for names in CHAPTERS.values() for name in names}
    face = {package.members[str(name)].target_path.partition(".")[2] for name in package.exports or ()}
    if missing := face - shown:
        raise ValueError(f"the page lacks a part of the package's face: {', '.join(sorted(missing))}")
    parts = [INTRODUCTION]
    for chapter, names in CHAPTERS.items():
        parts.append(f"## {chapter}\n")
        for name in names:
            home = package.path if name in face else package[name].parent.path
            parts += _object(package[name], home)
    return "\n".join(parts)


def _object(thing: Class | Function, home: str) -> Iterator[str]:
    yield f"### `{thing.name}`\n"
    yield f"`from {home} import {thing.name}`\n"
    if thing.is_function:
        yield _signature(thing)
    elif thing.name not in RECEIVED and not thing.name.endswith("Error"):
        yield _signature(thing.members.get("__init__", thing), thing.name)
    yield from _text(thing)
    yield from _settings(thing)
    if thing.is_function:
        return
    if fields := [field for field in thing.attributes.values() if _shown(field.name) and field.docstring]:
        yield from (_item(f"`{field.name}: {field.annotation}`", field.docstring.value) for field in fields)
        yield ""
    for method in thing.functions.values():
        if _shown(method.name):
            yield f"#### `{thing.name}.{method.name}`\n"
            yield _signature(method)
            yield from _text(method)


def _settings(thing: Class | Function) -> Iterator[str]:
    """Yield the settings that a class declares, each with its help."""
    declared = {one.name: one.default for one in thing.parameters if _is_setting(one.default)}
    yield from (_item(f"**{name}**", literal_eval(str(call.arguments[2]))) for name, call in declared.items())
    if declared:
        yield ""


def _is_setting(default: object) -> TypeGuard[ExprCall]:
    return isinstance(default, ExprCall) and str(default.function) == SETTING


def _shown(name: str) -> bool:
    return not name.startswith("_")


def _signature(thing: Class | Function, name: str | None = None) -> str:
    parameters, starred = [], False
    for parameter in thing.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is ParameterKind.keyword_only and not starred:
            parameters.append("*")
        starred = starred or parameter.kind in (ParameterKind.keyword_only, ParameterKind.var_positional)
        value = parameter.default.arguments[0] if _is_setting(parameter.default) else parameter.default
        default = "" if value is None or parameter.kind in MARKS else f" = {value}"
        parameters.append(f"{MARKS.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}{default}")
    result = "" if name or thing.is_class else f" -> {thing.returns}"
    line = f"{name or thing.name}({', '.join(parameters)}){result}"
    if len(line) > 100:
        line = f"{name or thing.name}(\n    " + ",\n    ".join(parameters) + f",\n){result}"
    return f"```python\n{line}\n```\n"


def _text(thing: Class | Function) -> Iterator[str]:
    for section in thing.docstring.parsed if thing.docstring else ():
        if section.kind is DocstringSectionKind.text:
            yield from (f"{_filled(paragraph)}\n" for paragraph in section.value.split("\n\n"))
        elif section.kind is DocstringSectionKind.parameters:
            yield from (_item(f"**{parameter.name}**", parameter.description) for parameter in section.value)
            yield ""
        elif section.kind is DocstringSectionKind.raises:
            yield from (_item(f"raises **{error.annotation}**", error.description) for error in section.value)
            yield ""
        else:
            raise ValueError(f"{thing.path}: no rendering of a section of {section.kind.value}")


def _item(name: str, description: str) -> str:
    return _filled(f"- {name}: {description}", indent="  ")


def _filled(text: str, indent: str = "") -> str:
    """Fill a paragraph or an item into lines of the page's width, none of which begins as an item would."""
    whole = re.sub(r" (?=[-+*#>] |\d+\. )", "\0", " ".join(text.split()))
    lines = textwrap.fill(whole, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
