"""The most that a model file may claim of each size: beyond, it is damaged, or made to exhaust this machine.

Each is several times what any published causal language model has. They are compared before anything is built.
"""

from __future__ import annotations

MOST = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 11,
    "num_heads": 1 << 12,
    "num_kv_heads": 1 << 12,
    "head_dim": 1 << 13,
    "vocab_size": 1 << 23,
    "context_length": 1 << 25,
    "places": 16,
    "blocks": 8,
}
"""By the names of `BaseConfig`, and of a module's places.

A context of 2^25 tokens is three times the longest; its mask takes 256 MB.
A chain has 15 places at most; modules that were published have five, of one block or two."""
LEAST = {"context_length": 8}
"""The least, where one is not enough: a check of two graphs reads a text at once, and by steps behind a beginning."""
MOST_OF_ANYTHING = (1 << 31) - 1
"""Of any other whole number."""


def within(name: str, value: object, least: int = 1) -> int:
    """Return a size as a whole number in range.

    Raises:
        ValueError: it is none, or out of range.
    """
    least, most = LEAST.get(name, least), MOST.get(name, MOST_OF_ANYTHING)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.100}; expected a whole number from {least} to {most}")
    return value
