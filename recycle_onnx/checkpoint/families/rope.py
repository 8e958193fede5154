"""Rotary embeddings as configs describe them, to frequencies: what transformers' ROPE_INIT_FUNCTIONS compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.base import Rope
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.errors import InputError

Frequencies = NDArray[np.float64]


class Scaling(NamedTuple):
    """A `rope_parameters` or `rope_scaling` object, with what it may leave out."""

    values: Mapping[str, Any]
    size: int
    base: float
    context: int
    original: int

    def number(self, name: str, default: float | None = None) -> float:
        """Return one of the values as a number; KeyError where there is neither a value nor a default."""
        value = self.values.get(name)
        if value is None and default is None:
            raise KeyError(name)
        number: Any = default if value is None else value
        return float(number)

    def stretch(self) -> float:
        """Return `factor`, or the ratio of the two context lengths."""
        return self.number("factor", self.context / self.original)


def read_rope(
    config: Config,
    head_dim: int,
    *,
    values: Mapping[str, Any] | None = None,
    base: float = 10000.0,
    part: float = 1.0,
    aliases: Mapping[str, str] | None = None,
    interleaved: bool = False,
) -> tuple[Rope, int]:
    """Read the rotary embedding, and up to how many tokens its frequencies hold.

    Its `values` are those of `rope_parameters`, `rope_scaling` and `rope_theta` unless given; `base` and `part` (of a
    head that is rotated) count where the config says none; `aliases` are older names of scalings.

    Raises:
        InputError: an unknown kind of scaling, a value that is not known, or one that is missing.
    """
    scaling = _scaling(config, head_dim, _values(config) if values is None else values, base, part)
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    kind = (aliases or {}).get(kind, kind) if isinstance(kind, str) else None
    if "alpha" in scaling.values and kind != "dynamic":
        raise InputError(f"{config.path}: RoPE scaling {kind!r} has an 'alpha'; expected one in 'dynamic' alone")
    if kind not in KINDS:
        raise InputError(f"{config.path}: rope_type {kind!r} is not supported; expected one of: {', '.join(KINDS)}")
    try:
        frequencies, factor, limit = KINDS[kind](scaling)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{config.path}: RoPE scaling {kind!r} lacks or misstates a value ({error})") from error
    if frequencies.shape != (-(-scaling.size // 2),) or not np.isfinite(frequencies).all():
        raise InputError(f"{config.path}: RoPE scaling {kind!r} does not fit {scaling.size} rotated values a head")
    return Rope(tuple(frequencies.tolist()), factor, interleaved), limit


def _values(config: Config) -> dict[str, Any]:
    """Return what a config says of all layers, in the older and in the newer way."""
    values = {"rope_theta": config.value("rope_theta", "rotary_emb_base")}
    values |= {"partial_rotary_factor": config.value("partial_rotary_factor", "rotary_pct")}
    for name in ("rope_scaling", "rope_parameters"):
        values |= config.fields(name)
    return values


def _scaling(config: Config, head_dim: int, values: Mapping[str, Any], base: float, part: float) -> Scaling:
    if unknown := sorted(set(values) - KNOWN):
        raise InputError(
            f"{config.path}: the RoPE parameter {unknown[0]!r} ({values[unknown[0]]!r}) is not supported; "
            f"known are: {', '.join(sorted(KNOWN))}"
        )
    context = config.integer("max_position_embeddings")
    before = config.value("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    try:
        base, part = float(values.get("rope_theta") or base), float(values.get("partial_rotary_factor") or part)
        if not 0 < part <= 1:
            raise ValueError(f"partial_rotary_factor is {part}; expected a part of 1")
        return Scaling(values, int(head_dim * part), base, context, int(before or context))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{config.path}: a RoPE parameter is not a number ({error})") from error


def _plain(scaling: Scaling) -> Frequencies:
    frequencies: Frequencies = scaling.base ** -(np.arange(0, scaling.size, 2) / scaling.size)
    return frequencies


def _default(scaling: Scaling) -> tuple[Frequencies, float, int]:
    return _plain(scaling), 1.0, scaling.context


def _linear(scaling: Scaling) -> tuple[Frequencies, float, int]:
    """Scale by position interpolation (arXiv 2306.15595)."""
    return _plain(scaling) / scaling.number("factor"), 1.0, scaling.context


def _dynamic(scaling: Scaling) -> tuple[Frequencies, float, int]:
    """Leave frequencies unscaled: dynamic scaling differs beyond the context only.

    There it would change the keys in the cache at every length. Hunyuan's has an `alpha`, which stretches the base
    whatever the length.
    """
    if alpha := scaling.number("alpha", 0):
        stretched = scaling.base * alpha ** (scaling.size / (scaling.size - 2))
        scaling = scaling._replace(base=stretched)
    return _plain(scaling), 1.0, scaling.context


def _longrope(scaling: Scaling) -> tuple[Frequencies, float, int]:
    """Scale by LongRoPE (arXiv 2402.13753) up to the original context; beyond, cached keys would change too."""
    stretch = scaling.stretch()
    usual = math.sqrt(1 + math.log(stretch) / math.log(scaling.original)) if stretch > 1 else 1.0
    factors = np.array(scaling.values["short_factor"], np.float64)
    return _plain(scaling) / factors, scaling.number("attention_factor", usual), scaling.original


def _llama3(scaling: Scaling) -> tuple[Frequencies, float, int]:
    """Stretch long waves, keep short ones, and stretch those between in part."""
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    frequencies = _plain(scaling)
    turns = scaling.original * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.number("factor")), 1.0, scaling.context


def _yarn(scaling: Scaling) -> tuple[Frequencies, float, int]:
    """Scale by YaRN (arXiv 2309.00071)."""
    stretch, frequencies = scaling.stretch(), _plain(scaling)
    pairs = np.arange(len(frequencies))
    low, high = _correction(scaling)
    kept = 1 - np.clip((pairs - low) / (high - low or 0.001), 0, 1)
    scaled = frequencies * (kept + (1 - kept) / stretch)
    return scaled, scaling.number("attention_factor", _yarn_factor(scaling, stretch)), scaling.context


def _correction(scaling: Scaling) -> tuple[float, float]:
    """Return between which pairs the frequencies go from kept to stretched."""

    def pair(turns: float) -> float:
        waves = math.log(scaling.original / (turns * 2 * math.pi))
        return scaling.size * waves / (2 * math.log(scaling.base))

    low, high = pair(scaling.number("beta_fast", 32)), pair(scaling.number("beta_slow", 1))
    if scaling.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, scaling.size - 1)


def _yarn_factor(scaling: Scaling, stretch: float) -> float:
    def factor(weight: float) -> float:
        return 0.1 * weight * math.log(stretch) + 1 if stretch > 1 else 1.0

    one, other = scaling.values.get("mscale"), scaling.values.get("mscale_all_dim")
    return factor(one) / factor(other) if one and other else factor(1)


KNOWN = {
    "alpha", "attention_factor", "beta_fast", "beta_slow", "factor", "finetuned", "high_freq_factor", "long_factor",
    "low_freq_factor", "mscale", "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor",
    "rope_theta", "rope_type", "short_factor", "truncate", "type",
}  # fmt: skip
"""Fields of a scaling that are read, or change nothing; any other one is refused by name."""
KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
"""transformers' kinds of scaling, by `rope_type`."""
