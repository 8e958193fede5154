"""An engine in a process of its own: a request is a line of JSON on its input, an answer one on its output.

`{"prompt": ids, "new_tokens": n, "stop": ids, …}` is answered with `{"tokens": ids, "tokens_per_second": s}`, where the
speed is that of the tokens after the first; `{"score": ids}` with `{"nats": sum, "tokens": n}` over all but the first;
`{"behind": length, "step": n}`, where the engine takes that, with `{"ms": m}` for one run on n tokens behind a text of
that length, which is read first where another one was. ours.py and llama.py also score the tokens from `"first": n` on,
and add whether they are what `greedy` decoding says.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Worker:
    """A process that decodes when it is told to."""

    def __init__(self, *command: object) -> None:
        arguments = [str(part) for part in command]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._expect("{"))
        return answer

    def perplexities(self, windows: Sequence[Sequence[int]]) -> dict[str, float]:
        """Over all windows, each read by itself: `nats`, and what else the engine's scores are made of."""
        answers = [self.ask(score=window) for window in windows]
        tokens = sum(answer.pop("tokens") for answer in answers)
        sums = [name for name in answers[0] if name.endswith("nats")]
        return {name: math.exp(sum(answer[name] for answer in answers) / tokens) for name in sums}

    def _expect(self, beginning: str) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith(beginning):
                return line
        sys.exit(f"{self.process.args} ended early")

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate()


def serve(
    generate: Callable[..., dict[str, Any]],
    score: Callable[..., dict[str, Any]],
    step: Callable[..., dict[str, Any]] | None = None,
) -> None:
    """Answer requests until the input ends: the engine's side."""
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "score" in request:
            answer = score(request.pop("score"), **request)
        else:
            answer = step(**request) if step and "step" in request else generate(**request)
        print(json.dumps(answer), flush=True)


def nats_of(logits: Any, ids: Sequence[int]) -> dict[str, Any]:
    """Answer a request to score `ids`, from the logits [len(ids) - 1, V] after all but the last."""
    rows = np.array(logits, np.float64)
    rows -= rows.max(-1, keepdims=True)
    nats = np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(ids) - 1), ids[1:]]
    return {"nats": float(nats.sum()), "tokens": len(nats)}
