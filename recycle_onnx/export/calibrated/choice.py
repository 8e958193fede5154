"""Which matrices get 8 bits: those whose 4 bits do most damage for what the others cost, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recycle_onnx.errors import InputError
from recycle_onnx.export.block_quantizer import Quantization


@dataclass(frozen=True)
class RowGroup:
    """Rows of a matrix that are stored together: how many values, and the `damage` of storing them in 4 bits.

    The damage is the divergence (nats a token) from float32 of a model in which nothing else is rounded.
    """

    weight: str
    rows: tuple[int, int]
    values: int
    damage: float


def bits_of(how: Quantization) -> float:
    """Return the bits a value takes, with its share of a float32 scale and of a zero point."""
    return how.bits + (32 + (0 if how.symmetric else how.bits)) / how.block_size


def check_budget(budget: float, least: float) -> None:
    """Refuse a budget that cannot be met, before any work begins.

    Raises:
        InputError: 4 bits throughout take more than the budget.
    """
    if budget < least:
        raise InputError(
            f"--bits-per-weight is {budget:g}; 4 bits throughout, with scales and zero points, take {least:.3f}: "
            "give more, or larger blocks (--block-size 64)"
        )


def choose(parts: Sequence[RowGroup], four: Sequence[float], eight: Sequence[float], budget: float) -> list[bool]:
    """Choose whether each part gets 8 bits; `four` and `eight` are what its values take in either.

    The worst damage for a bit comes first, as long as the mean stays within `budget`.
    """
    total = sum(part.values for part in parts)
    left = budget * total - sum(bits * part.values for bits, part in zip(four, parts, strict=True))
    cost = [(e - f) * part.values for e, f, part in zip(eight, four, parts, strict=True)]
    chosen = [False] * len(parts)
    for place in sorted(range(len(parts)), key=lambda place: -parts[place].damage / cost[place]):
        if cost[place] <= left and parts[place].damage > 0:
            chosen[place] = True
            left -= cost[place]
    return chosen
