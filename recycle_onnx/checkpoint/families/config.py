"""A `config.json`, read field by field: what is missing, of a wrong type or not understood is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from recycle_onnx.errors import InputError
from recycle_onnx.limits import MOST, MOST_OF_ANYTHING

T = TypeVar("T")

LARGEST = 1e300
"""Of any number: whole ones of JSON may be larger than a float can hold."""
SIZES = {
    "n_embd": "hidden_size", "ffn_dim": "intermediate_size", "n_inner": "intermediate_size",
    "num_hidden_layers": "num_layers", "n_layer": "num_layers", "num_attention_heads": "num_heads",
    "n_head": "num_heads", "num_key_value_heads": "num_kv_heads", "max_position_embeddings": "context_length",
    "n_positions": "context_length",
}  # fmt: skip
"""Names in configs of what `limits` limits under another name."""

DECISIVE = (
    "add_cross_attention", "alibi", "attention_bias", "attention_multiplier", "attn_logit_softcapping", "clip_qkv",
    "embedding_multiplier", "final_logit_softcapping", "layer_types", "lm_head_bias", "logit_scale", "logits_scaling",
    "mlp_bias", "n_routed_experts", "no_rope_layers", "num_experts", "num_local_experts", "partial_rotary_factor",
    "qk_norm", "qkv_bias", "query_pre_attn_scalar", "residual_multiplier", "rope_parameters",
    "rope_scaling", "rotary_pct", "sliding_window", "use_bias", "use_bidirectional_attention", "use_qk_norm",
)  # fmt: skip
"""Fields that change what a model computes, in whichever family: a family that does not read one refuses it."""


class Config:
    """The fields of one `config.json`; where several names are asked for, the first one present counts."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw, self.path = raw, path
        self._read: set[str] = set()

    def value(self, *names: str) -> Any:
        """Return the value, None where there is none."""
        self._read.update(names)
        return next((self.raw[name] for name in names if self.raw.get(name) is not None), None)

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Set `defaults` where there is no value."""
        self.raw = {**defaults, **self.raw}

    def fields(self, name: str) -> dict[str, Any]:
        """Return an object, empty where there is none."""
        value = self.value(name)
        if not isinstance(value, dict | None):
            raise self.wrong(name, value, "an object")
        return value or {}

    def integer(self, *names: str, default: int | None = None) -> int:
        """Return a whole number."""
        return self._typed(int, names, default)

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a number."""
        return self._typed(float, names, default)

    def optional(self, name: str) -> float | None:
        """Return a number, or None where there is none."""
        return None if self.value(name) is None else self.number(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return default if value is None else value

    def choice(self, *names: str, choices: Mapping[str, T], default: str) -> T:
        """Return one of the `choices`, by its name in the config."""
        name = self.value(*names)
        name = default if name is None else name
        if not isinstance(name, str) or name not in choices:
            raise self.wrong(names[0], name, f"one of: {', '.join(choices)}")
        return choices[name]

    def listed(self, name: str, count: int, choices: Sequence[T]) -> list[T] | None:
        """Return a list with one of the `choices` for each of `count` layers, or None."""
        values = self.value(name)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, values, f"a list of {count}, one a layer")
        for index, value in enumerate(values):
            if value not in choices:
                expected = ", ".join(map(repr, choices))
                raise InputError(f"{self.path}: {name}[{index}] {value!r} is not supported; expected one of {expected}")
        return values

    def must_be(self, name: str, *expected: object) -> None:
        """Refuse any value but the `expected` ones and none."""
        value = self.value(name)
        if value is not None and value not in expected:
            raise self.wrong(name, value, " or ".join(map(repr, expected)) or "none")

    def wrong(self, name: str, value: object, expected: str) -> InputError:
        """Make the error for a value that is not understood."""
        return InputError(f"{self.path}: {name} {value!r:.100} is not supported; expected {expected}")

    def refuse_unread(self) -> None:
        """Refuse what changes the result and was not read, unless its value changes nothing."""
        kind = self.raw.get("model_type")
        for name in DECISIVE:
            if name not in self._read and not _changes_nothing(self.raw.get(name)):
                raise InputError(
                    f"{self.path}: {name} {self.raw[name]!r} is not known for model_type {kind!r}; expected none"
                )

    def _typed(self, kind: type[T], names: tuple[str, ...], default: T | None) -> T:
        value = self.value(*names)
        if value is None:
            if default is None:
                kind_name = self.raw.get("model_type")
                raise InputError(f"{self.path}: no value for {names[0]!r}, which a {kind_name} config must have")
            return default
        if not _is_number(value) or value != kind(value):  # type: ignore[call-arg]
            raise self.wrong(names[0], value, "a whole number" if kind is int else "a number")
        most = _most(names[0]) if kind is int else LARGEST
        if abs(value) > most:
            raise self.wrong(names[0], value, f"at most {most:g}" if kind is float else f"at most {most}")
        return kind(value)  # type: ignore[call-arg]


def _is_number(value: object) -> bool:
    """Tell whether a value is a finite number that a float can hold."""
    return (type(value) is int and abs(value) < LARGEST) or (type(value) is float and math.isfinite(value))


def _most(name: str) -> int:
    return MOST.get(SIZES.get(name, name), MOST_OF_ANYTHING)


def _changes_nothing(value: object) -> bool:
    if isinstance(value, list):
        return all(kind == "full_attention" for kind in value)
    return value is None or value is False or value == {} or (value is not True and value in (0, 1))
