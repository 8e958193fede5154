"""An application that embeds the package is checked by mypy --strict, and its mistakes are seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: pip install 'recycle-onnx[dev]'")
ROOT = Path(__file__).parents[1]
APPLICATION = '''
"""A small application."""

import asyncio

import recycle_onnx
from recycle_onnx import (
    Conversation,
    Generation,
    GenerationConfig,
    Grammar,
    InputError,
    JsonSchema,
    Model,
    RecycleError,
    Regex,
    Result,
    Stats,
    Token,
)


def open_model(path: str) -> Model | None:
    try:
        return recycle_onnx.load(path, threads=1)
    except InputError as error:
        print(error)
    except RecycleError as error:
        raise SystemExit(str(error)) from error
    return None


def describe(model: Model) -> tuple[str, int, bool, int]:
    ids: list[int] = model.encode("Hello")
    text: str = model.decode(ids)
    return model.name, model.context_length, model.module_trained, model.count_tokens(text)


def answer(model: Model) -> str:
    config = GenerationConfig(temperature=0.8, stop=["END"], constraint=Regex("a+"))
    result: Result = model.chat([{"role": "user", "content": "Hi"}], config, max_tokens=40)
    again: Result = model.generate("Once", max_new_tokens=-1, constraint=JsonSchema({"type": "object"}))
    stats: Stats = again.stats
    rate: float | None = stats.acceptance_rate
    return f"{result.text} {rate}"


def talk(model: Model) -> list[str]:
    chat: Conversation = model.conversation(system="Be brief.", overflow="drop_oldest")
    first: Result = chat.ask("Hello", max_new_tokens=8)
    generation: Generation = chat.send("And?", constraint=Grammar('start: "a"'))
    tokens: list[Token] = list(generation)
    return [first.text, *(token.text for token in tokens)]


async def stream(model: Model) -> None:
    async for token in model.stream("Once", temperature=0.5):
        print(token.text, token.id, token.recycled, end="")


def main() -> None:
    with recycle_onnx.load("BUNDLE") as model:
        print(model, describe(model), answer(model), talk(model))
        asyncio.run(stream(model))
'''
MISTAKES = """
import recycle_onnx

model: recycle_onnx.RecycleModel = recycle_onnx.load("BUNDLE", thread=1)  # error: call-arg
model.generate("Once", max_new_token=3)  # error: call-arg
model.generate("Once", temperature="hot")  # error: arg-type
model.chat(3)  # error: arg-type
model.conversation(overflow="forget")  # error: arg-type
text: int = model.chat("Hi").text  # error: assignment
for token in model.stream("Once"):
    token.txt  # error: attr-defined
"""


def checked(folder: Path, **programs: str) -> str:
    """What mypy says of programs, which import the package as an installed one."""
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file="]
    command += ["--cache-dir", str(folder / "cache"), *(f"{name}.py" for name in programs)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    return run.stdout


def test_an_application_is_typed_and_its_mistakes_are_seen(tmp_path: Path) -> None:
    said = checked(tmp_path, application=APPLICATION, mistakes=MISTAKES)
    errors = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", said, re.MULTILINE)
    expected = [
        ("mistakes", str(number), line.rpartition("# error: ")[2])
        for number, line in enumerate(MISTAKES.splitlines(), start=1)
        if "# error: " in line
    ]
    assert errors == expected, said
