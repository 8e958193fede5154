"""What `recycle-onnx calibrate` found on this machine, kept in the user's cache: what `auto` believes at first."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.cache import cache_folder
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.files import read_json, write_json
from recycle_onnx.machine import processor
from recycle_onnx.temporary import temporary_file

STEP = re.compile(r"(full|recycle)_[1-9]")
"""Names of steps: a file with others is damaged, or of another version."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MachineCalibration:
    """Step times in milliseconds and acceptance rates, as measured on this machine.

    Steps are `full_1` … `full_5`, `recycle_1` and `recycle_2`.

    `acceptance` is by proposer (`module`, `lookup`) and place in a chain, given that those before were right.
    """

    step_ms: dict[str, float]
    acceptance: dict[str, list[float]]
    processor: str
    onnxruntime: str

    @classmethod
    def of_this_machine(cls, step_ms: dict[str, float], acceptance: dict[str, list[float]]) -> MachineCalibration:
        """Make a calibration that holds for this processor and this ONNX Runtime."""
        return cls(step_ms, acceptance, processor.identity(), ort.__version__)

    @classmethod
    def find(cls, bundle: Bundle, provider: str, threads: int | None) -> MachineCalibration | None:
        """Read the calibration in the cache, None if there is none; ignore a stale or damaged one with a warning."""
        path = calibration_file(bundle, provider, threads)
        if not os.path.lexists(path):
            return None
        again = f"`recycle-onnx calibrate {bundle.folder}` makes a new one"
        try:
            raw = read_json(path)
            calibration = cls(**{f.name: raw[f.name] for f in fields(cls)})
            calibration._check()
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            logger.warning("%s: ignored, a damaged calibration (%s); %s", path, error, again)
            return None
        if (calibration.processor, calibration.onnxruntime) != (processor.identity(), ort.__version__):
            made_for = f"ONNX Runtime {calibration.onnxruntime} on {calibration.processor}"
            logger.warning("%s: ignored, a stale calibration (made for %s); %s", path, made_for, again)
            return None
        return calibration

    def _check(self) -> None:
        rates = [rate for places in self.acceptance.values() for rate in places]
        times = [ms for kind, ms in self.step_ms.items() if STEP.fullmatch(kind) or ms is None]
        if len(times) != len(self.step_ms) or not all(0 < ms < math.inf for ms in times):
            raise ValueError("a step that is not known, or takes no time")
        if not all(type(places) is list for places in self.acceptance.values()) or not all(0 <= r <= 1 for r in rates):
            raise ValueError("a rate that is none")

    def save(self, bundle: Bundle, provider: str, threads: int | None) -> Path:
        """Write the calibration into the cache; return the file's path.

        Raises:
            RecycleError: the cache cannot be written.
        """
        path = calibration_file(bundle, provider, threads)
        with _cache_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(self))
        return path


def check_cache(bundle: Bundle, provider: str, threads: int | None) -> None:
    """Refuse before anything is measured where `MachineCalibration.save` would.

    Raises:
        RecycleError: the cache cannot be written.
    """
    path = calibration_file(bundle, provider, threads)
    with _cache_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path):
            pass


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RecycleError(f"{path}: cannot write ({reason}); RECYCLE_ONNX_CACHE names another folder") from error


def calibration_file(bundle: Bundle, provider: str, threads: int | None) -> Path:
    """Return where the calibration of this bundle lies for this provider and number of threads."""
    return cache_folder() / "calibration" / f"{bundle.digest[:32]}-{provider}-{threads or 'default'}.json"
