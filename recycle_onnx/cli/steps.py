"""Kinds of steps, and what `auto` chooses among, in words."""

from __future__ import annotations

from collections.abc import Mapping

HALVES = {"full": "full model", "recycle": "module", "recycler": "module"}
"""What people call the halves; step times say `recycle`, graphs `recycler`."""


def step_times(step_ms: Mapping[str, float]) -> str:
    """List kinds of steps with their milliseconds, such as `full model on 2 tokens 1.25`."""
    return ", ".join(f"{_step(kind)} {value:.2f}" for kind, value in step_ms.items())


def proposal(chosen: str) -> str:
    """Name what `auto` chose: `module_2`, `lookup`, `constraint` or `nothing`."""
    proposer, _, count = chosen.partition("_")
    if count:
        return f"{tokens(count)} of the {proposer}"
    return {"nothing": "no proposal", "lookup": "a lookup in the text", "constraint": "what the constraint forces"}[
        proposer
    ]


def tokens(count: int | str) -> str:
    """Write a number of tokens."""
    return f"{count} token{'' if str(count) == '1' else 's'}"


def _step(kind: str) -> str:
    half, _, rest = kind.partition("_")
    count, _, after = rest.partition("_")
    if half == "module":
        return f"module's chain of {count}"
    on = f"{HALVES[half]} on {tokens(count)}" if count else HALVES[half]
    return f"{on} after the module" if after else on
