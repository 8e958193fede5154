"""Compiling JSON schemas in a process of its own first, which can be ended when it takes too long.

llguidance compiles most schemas in milliseconds, some of a hundred kilobytes in a minute, and some of one kilobyte
never, such as an `allOf` of thirty patterns. It cannot be interrupted, so a thread that it occupies is lost. A schema
that was compiled in time once is compiled again here; small plain ones need no trial.

What counts is the processor time of compiling: on a busy machine an honest schema waits for its turn, and is not
refused for it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.native import Interrupted, is_interrupted
from recycle_onnx.runtime.structured import Constraint, Constraints, JsonSchema
from recycle_onnx.runtime.tools.grammar import CallGrammar
from recycle_onnx.tokenizer import load_tokenizer

PLAIN = frozenset(
    {
        "type", "properties", "required", "items", "enum", "const", "title", "description", "additionalProperties",
        "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "default", "x-guidance",
        "$schema",
    }
)  # fmt: skip
"""Keywords whose compilation takes time in proportion to the schema's size."""
SMALL = 300
"""JSON values in a schema: of plain ones so small the slowest took 0.1 s."""
POLL_SECONDS = 0.05
"""How soon a trial notices that its client has gone, without keeping a processor busy."""
CLOCK = getattr(signal, "SIGPROF", None)
"""Ends a process that has used up its processor time; Windows has none, and wall time counts there."""
PATIENCE = 60.0
"""Seconds of wall time beyond it for a busy machine, and for starting the process."""
MOST_MEMORY = 4 << 30
"""Bytes of addresses that a trial may take, beyond which it fails."""


class Trials:
    """Trial compilations for one model, which remember the latest schemas that passed; those of tools go together."""

    def __init__(self, model: Model, seconds: float) -> None:
        self._model, self._seconds = model, seconds
        self._passes = lru_cache(maxsize=64)(self._try)  # what raises is not kept

    def check(self, constraint: Constraint | None, stop_ids: Any) -> None:
        """Refuse a schema that does not compile in time; wait for at most that long.

        Raises:
            InputError: it does not.
            Interrupted: this thread was interrupted.
        """
        tried = tuple(
            (whose, JsonSchema(schema).text())
            for whose, schema in _schemas_of(constraint)
            if not is_small_and_plain(schema)
        )
        if tried:
            self._passes(tried, tuple(stop_ids or self._model.stop_ids))

    def _try(self, schemas: tuple[tuple[str, str], ...], stop_ids: tuple[int, ...]) -> None:
        vocab_size = self._model.bundle.manifest.graphs["full"].vocab_size
        asked = json.dumps([str(self._model.bundle.folder), vocab_size, stop_ids, schemas, self._seconds])
        command = [sys.executable, "-m", "recycle_onnx.serve.trial"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                answer = self._wait(process, asked)
            finally:
                process.kill()
        if CLOCK is not None and process.returncode == -CLOCK:
            raise self._too_slow()
        if answer != "fine":
            raise InputError(answer.strip() or "the JSON schema takes too much memory to compile; make it simpler")

    def _wait(self, process: subprocess.Popen[str], asked: str) -> str:
        patience = 0 if CLOCK is None else PATIENCE
        end, text = time.monotonic() + self._seconds + patience, [asked]
        while True:
            if is_interrupted():
                raise Interrupted("the trial of a schema was interrupted")
            if time.monotonic() > end:
                raise self._too_slow()
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(text.pop() if text else None, timeout=POLL_SECONDS)[0]

    def _too_slow(self) -> InputError:
        return InputError(f"the JSON schema takes more than {self._seconds:g} s to compile; make it simpler")


def _schemas_of(constraint: Constraint | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the schemas of a constraint, each with what an error begins with."""
    if isinstance(constraint, CallGrammar):
        return [(f"the parameters of tool {name!r}: ", schema) for name, schema in constraint.schemas]
    return [("", constraint.schema)] if isinstance(constraint, JsonSchema) else []


def is_small_and_plain(schema: Any) -> bool:
    """Tell whether a schema needs no trial: a few hundred values, and no keyword that combines others."""
    waiting, seen = [schema], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > SMALL:
            return False
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
    return _is_plain(schema)


def _is_plain(schema: Any) -> bool:
    if isinstance(schema, bool):
        return True
    if not (isinstance(schema, dict) and schema.keys() <= PLAIN):
        return False
    properties = schema.get("properties", {})
    parts = [*(properties.values() if isinstance(properties, dict) else [None])]
    parts += [schema[name] for name in ("items", "additionalProperties") if name in schema]
    return all(_is_plain(part) for part in parts)


def main() -> None:
    """Compile the schemas on standard input, and write `fine`, or what is wrong with one of them."""
    _limit_memory()
    folder, vocab_size, stop_ids, schemas, seconds = json.load(sys.stdin)
    try:
        constraints, stops = Constraints(load_tokenizer(Path(folder)), vocab_size), frozenset(stop_ids)
        constraints.prepare(JsonSchema({}), stops)  # what every schema takes once: imports, and the tokens' texts
        _limit_time(seconds)
        for whose, schema in schemas:
            _compile(constraints, stops, whose, JsonSchema(json.loads(schema)))
    except InputError as error:
        print(error)
    else:
        print("fine", end="")


def _compile(constraints: Constraints, stops: frozenset[int], whose: str, schema: JsonSchema) -> None:
    try:
        constraints.prepare(schema, stops).try_first_token()
    except InputError as error:
        raise InputError(f"{whose}{error}") from error


def _limit_time(seconds: float) -> None:
    """Have the system end this process after so much more processor time, whatever library uses it."""
    if CLOCK is not None:
        signal.signal(CLOCK, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    main()
