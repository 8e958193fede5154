"""Settings in range, or one line that says what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from recycle_onnx.errors import InputError


def check(name: str, value: object, fits: Callable[[Any], bool], expected: str, *, whole: bool = False) -> None:
    """Let a finite number that `fits` pass; `whole` numbers are integers.

    Raises:
        InputError: anything else, with `name` as the command line writes it.
    """
    kind = Integral if whole else Real
    if isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and fits(value):
        return
    raise InputError(f"{name.replace('_', '-')} is {value!r}; expected {expected}")
