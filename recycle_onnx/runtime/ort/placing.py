"""Where a model runs, as keywords."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TypedDict


class Placing(TypedDict, total=False):
    """The keywords of `recycle_onnx.load` that say where a model runs, for functions that load one themselves."""

    provider: str
    recycler_provider: str | None
    provider_options: Mapping[str, str] | None
    recycler_provider_options: Mapping[str, str] | None
    provider_libraries: Mapping[str, str | PathLike[str]] | None
