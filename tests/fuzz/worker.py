"""Tries one mutant after another, as standard input says, and tells what came of each: a process that may die of it.

`python -m tests.fuzz.worker FOLDER [--without MODULE:FUNCTION]`; a line `KIND SEED NUMBER` in, a line of JSON out.
`--without` takes a check away, to see that the campaign notices.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from recycle_onnx.errors import RecycleError
from tests.fuzz.harms import HARMFUL, Harm
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.requests import Requests
from tests.fuzz.watch import Watch

READY = "ready"
"""The first line: from here on the time is a mutant's."""


def main(folder: str, without: Sequence[str] = ()) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    os.environ["RECYCLE_ONNX_CACHE"] = str(Path(folder) / "place" / "users-cache")
    for name in without:
        module, _, function = name.partition(":")
        setattr(importlib.import_module(module), function, lambda *_, **__: None)
    place = Path(folder) / "place"
    place.mkdir(parents=True, exist_ok=True)
    (place.parent / "victim").write_text("not to be touched")
    ready: dict[str, Kind | Harm | Requests] = {}
    watch = Watch(place)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        name, seed, number = line.split()
        if name not in ready:
            (place / name).mkdir(exist_ok=True)
            ready[name] = Harm(HARMFUL[name][1]) if name in HARMFUL else KINDS[name](place / name)
        dice = Random(f"{name} {seed} {number}")
        print(json.dumps(attempt(ready[name], dice, watch)), file=answers, flush=True)


def attempt(kind: Kind | Harm | Requests, dice: Random, watch: Watch) -> dict[str, Any]:
    """What came of one mutant."""
    kind.prepare(dice)
    outcome, detail = "accepted", ""
    with watch.attempt() as measured:
        try:
            kind.use()
        except RecycleError as error:
            outcome, detail = "refused", str(error)
        except BaseException as error:  # a panic in Rust is none, and SystemExit would end more than this
            outcome, detail = "foreign", "".join(traceback.format_exception(error)[-8:])
    kind.restore()
    return {
        "outcome": outcome, "detail": detail[-3000:], "seconds": measured.seconds, "memory": measured.memory,
        "paths": measured.paths[:5],
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3:] if sys.argv[2:3] == ["--without"] else ())
