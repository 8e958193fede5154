"""What an export checks before it is called done: the graphs load, agree with themselves, and with torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.runtime.decoding.both_halves import BothHalves, difference, some_text, tolerance
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.ort.sessions import open_mapped
from recycle_onnx.untrusted import check_regular

STEPS = 3
"""Tokens that are read one by one behind a prompt: a cache that is written or read wrongly shows in the second."""


@dataclass(frozen=True)
class SelfCheck:
    """The largest differences, as a part of the largest logit, found by an export's check.

    Prefill is compared with steps, and graphs with torch.
    """

    prefill_against_steps: float
    against_reference: float | None


def check_bundle(bundle: Bundle, reference: Path | None, stop_ids: list[int]) -> SelfCheck:
    """Run both graphs of a fresh bundle.

    Raises:
        RecycleError: a graph does not load, gives values that are not finite, or departs from itself or from torch.
    """
    manifest = bundle.manifest
    halves = BothHalves(manifest, {kind: open_mapped(bundle, kind, "cpu", None) for kind in manifest.kinds})
    ids = some_text(manifest, stop_ids)
    whole = halves.logits(ids, split=len(ids))
    pieces = halves.logits(ids, split=len(ids) - STEPS)
    allowed = tolerance(manifest)
    steps = max(_difference(a, b, "prefill and steps", allowed) for a, b in zip(whole, pieces, strict=True))
    if reference is None or not reference.exists():
        return SelfCheck(steps, None)
    return SelfCheck(steps, _against_reference(halves, reference, allowed))


def _against_reference(halves: BothHalves, path: Path, allowed: float) -> float:
    try:
        check_regular(path)
        reference = load_file(path)
        ids, rows = reference["input_ids"].tolist(), reference["positions"]
        expected = (reference["logits"], reference["recycler_logits"])
        _check_reference(ids, rows, expected, halves.manifest)
    except (SafetensorError, KeyError, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: damaged ({error}); train again, or delete it to go without the comparison"
        ) from error
    if (draft := halves.manifest.draft_vocabulary) is not None:
        expected = (expected[0], expected[1][:, draft])
    actual = halves.logits(ids, split=len(ids))
    pairs = zip(expected, actual, strict=True)
    return max(_difference(a, b[rows], "torch and the graphs", allowed) for a, b in pairs)


def _check_reference(ids: Any, rows: Floats, expected: tuple[Floats, Floats], manifest: Manifest) -> None:
    """Refuse tokens, rows or logits that no training wrote.

    Raises:
        ValueError: names them.
    """
    vocab_size, most = manifest.graphs["full"].vocab_size, manifest.context_length
    tokens = isinstance(ids, list) and all(type(token) is int and 0 <= token < vocab_size for token in ids)
    if not tokens or not 2 <= len(ids) <= most:
        raise ValueError(f"input_ids are not 2 to {most} tokens below {vocab_size}")
    if rows.ndim != 1 or not rows.size or rows.dtype.kind != "i" or ((rows < 0) | (rows >= len(ids) - 1)).any():
        raise ValueError("positions are not those of tokens that another one follows")
    for logits in expected:
        if logits.shape != (len(rows), vocab_size) or logits.dtype.kind != "f":
            raise ValueError(f"logits are {logits.dtype}{list(logits.shape)}")


def _difference(expected: Floats, actual: Floats, what: str, allowed: float) -> float:
    try:
        apart = difference(expected, actual)
    except RecycleError as error:
        raise RecycleError(f"self-check: {what}: {error}") from error
    if apart > allowed:
        raise RecycleError(f"self-check: {what} differ by {apart:.1e} of the largest logit, allowed {allowed:.0e}")
    return apart
