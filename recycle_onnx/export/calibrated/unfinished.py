"""How far a calibration is, kept in the user's cache while it is not finished."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.cache import cache_folder
from recycle_onnx.export.block_quantizer import Blocks, Quantization
from recycle_onnx.export.calibrated.choice import RowGroup
from recycle_onnx.export.calibrated.segments import Floats, State
from recycle_onnx.files import temporary_sibling

SECONDS_BETWEEN = 120.0
"""Saves: some 200 MB each for a model of 135 M parameters. Ctrl-C saves too, so this is what a kill costs."""


class Rounded(NamedTuple):
    """The parts of matrices in 4 bits, in the order of the graph, and how each is stored.

    `factors` f32 [K] are what the columns of those were multiplied with that read a value, by the value's name.
    """

    parts: list[RowGroup]
    blocks: list[Blocks]
    hows: list[Quantization]
    factors: dict[str, Floats]

    def copy(self) -> Rounded:
        """Return other lists of the same things."""
        return Rounded(list(self.parts), list(self.blocks), list(self.hows), dict(self.factors))


@dataclass(frozen=True)
class Position:
    """The state of a calibration behind so many pieces of the graph: results, calibration windows, and probes.

    The first `seen` of the windows are behind one piece more, and `moments` are the sums of what its matrices read in
    them. (A window's state is replaced by the next one: together they take twice the memory.)
    """

    layers: int
    rounded: Rounded
    states: list[State]
    probes: list[State]
    seen: int = 0
    moments: dict[str, Floats] = field(default_factory=dict)


class Unfinished:
    """The saved position of one calibration, under a key that says all that it depends on."""

    def __init__(self, key: str) -> None:
        self._path = cache_folder() / "quantization" / f"{key[:32]}.npz"
        self._saved = time.monotonic()

    def save_now_and_then(self, at: Position) -> None:
        """Save the position if the last save is long ago."""
        if time.monotonic() - self._saved >= SECONDS_BETWEEN:
            self.save(at)

    def save(self, at: Position) -> None:
        """Write the position, in the place of any other calibration's; a cache that cannot be written is no error."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_sibling(self._path) as work:
                np.savez(work / "position.npz", allow_pickle=False, **_arrays(at))
                for other in self._path.parent.glob("*.npz"):
                    other.unlink()
                (work / "position.npz").replace(self._path)
        self._saved = time.monotonic()

    def load(self) -> Position | None:
        """Load the position that was saved; None if there is none, or a damaged one."""
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                return _position(arrays)
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """Delete the saved position: the calibration is finished."""
        self._path.unlink(missing_ok=True)


def _arrays(at: Position) -> dict[str, NDArray[Any]]:
    described = {
        "layers": at.layers,
        "parts": [asdict(part) for part in at.rounded.parts],
        "hows": [asdict(how) for how in at.rounded.hows],
        "states": [list(state) for state in at.states],
        "probes": [list(state) for state in at.probes],
        "seen": at.seen,
        "moments": list(at.moments),
        "factors": list(at.rounded.factors),
    }
    arrays: dict[str, NDArray[Any]] = {"described": np.array(json.dumps(described))}
    for kind, states in (("states", at.states), ("probes", at.probes)):
        for number, state in enumerate(states):
            arrays |= {f"{kind}.{number}.{place}": value for place, value in enumerate(state.values())}
    arrays |= {f"moments.{place}": sums for place, sums in enumerate(at.moments.values())}
    arrays |= {f"factors.{place}": factors for place, factors in enumerate(at.rounded.factors.values())}
    for number, blocks in enumerate(at.rounded.blocks):
        arrays |= {f"blocks.{number}.{name}": part for name, part in blocks._asdict().items() if part is not None}
    return arrays


def _position(arrays: Any) -> Position:
    described = json.loads(str(arrays["described"]))

    def states(kind: str) -> list[State]:
        return [
            {name: arrays[f"{kind}.{number}.{place}"] for place, name in enumerate(names)}
            for number, names in enumerate(described[kind])
        ]

    def blocks(number: int) -> Blocks:
        return Blocks(*(arrays.get(f"blocks.{number}.{name}") for name in Blocks._fields))

    parts = [RowGroup(**{**part, "rows": tuple(part["rows"])}) for part in described["parts"]]
    hows = [Quantization(**{**how, "keep": tuple(how["keep"])}) for how in described["hows"]]

    def by_name(kind: str) -> dict[str, Floats]:
        return {name: arrays[f"{kind}.{place}"] for place, name in enumerate(described[kind])}

    rounded = Rounded(parts, [blocks(number) for number in range(len(parts))], hows, by_name("factors"))
    moments = by_name("moments")
    return Position(described["layers"], rounded, states("states"), states("probes"), described["seen"], moments)
