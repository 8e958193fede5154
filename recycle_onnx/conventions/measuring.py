"""Acceptance of a module on text of its base's own, as it is declared and as it might be read otherwise.

With ONNX Runtime, in float32: the full model's graph has every hidden state that some reading takes, and each reading
has a graph of its own. Hidden states are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint import Checkpoint, RecyclerConfig
from recycle_onnx.checkpoint.recycler import FUSION
from recycle_onnx.checkpoint.weights import Tensors
from recycle_onnx.contract import GraphSpec
from recycle_onnx.conventions.overlay import Overlay
from recycle_onnx.conventions.readings import IN_A_CHAIN, MeasuredModule, Reading, readings
from recycle_onnx.conventions.text import WrittenText, write_texts
from recycle_onnx.conventions.verdict import Compared, ConventionVerdict, compared
from recycle_onnx.export.flavours import ORT, STANDARD, Flavour
from recycle_onnx.export.flavours.ort import HEAD_SIZES
from recycle_onnx.export.full_model import build_full_model, full_spec
from recycle_onnx.export.graph import OnnxModel
from recycle_onnx.export.lazy import LazyWeight, weights_of
from recycle_onnx.export.recycler import build_recycler, recycler_spec
from recycle_onnx.export.rewriter import Rewriter
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.decoding.half import Floats, Half
from recycle_onnx.runtime.ort.sessions import open_session

TOKENS = 2000
"""Of the base's own text: acceptance of a half is then known to 1.1 percentage points, and a difference to less."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Counted:
    """Whether proposals were right: at the first place [N], and at the second one of chains [M], if those were run."""

    first: Flags
    second: Flags


def measure(
    base: Checkpoint,
    module: MeasuredModule,
    work: Path,
    *,
    tokens: int | None = None,
    threads: int | None = None,
    report: Progress = silent,
) -> ConventionVerdict:
    """Measure every reading of `module` on its opened `base`; graphs are written into the folder `work`.

    A proposal is right where it is the base's own best token, after `tokens` of text that the base wrote, by default
    `TOKENS`.

    Raises:
        InputError: a head size that no flavour has, or a chat template that needs jinja2.
        RecycleError: the disk is full, or a graph does not fit into memory.
    """
    others = list(readings(module.config, base.base_weights))
    taps = tuple(dict.fromkeys(tap for reading in others for tap in (*module.config.tap, *reading.config.tap)))
    trial = _Trial(base, module, work, threads)
    texts = trial.texts(taps, tokens or TOKENS, report)
    declared = trial.count(Reading("declared", "", module.config), texts, chains=True)
    results: list[Compared] = []
    for number, reading in enumerate(others):
        report(number, len(others), f"reading it otherwise: {reading.convention}")
        in_a_chain = reading.convention == IN_A_CHAIN
        counted = trial.count(reading, texts, chains=in_a_chain)
        ours, theirs = (each.second if in_a_chain else each.first for each in (declared, counted))
        results.append(compared(reading, ours, theirs))
    report(len(others), len(others), "reading it otherwise")
    second = float(declared.second.mean()) if declared.second.size else 0.0
    return ConventionVerdict(module, float(declared.first.mean()), second, len(declared.first), tuple(results))


class _Trial:
    """The graphs of one module's readings, over one copy of the base's weights."""

    def __init__(self, base: Checkpoint, module: MeasuredModule, work: Path, threads: int | None) -> None:
        self._base, self._module, self._work, self._threads = base, module, work, threads
        sizes = (base.base.head_dim, module.config.layers_of(base.base).head_dim)
        self._flavour: Flavour = STANDARD if any(size % HEAD_SIZES for size in sizes) else ORT
        self._write = Rewriter(silent)
        self._shared: dict[str, LazyWeight] = {}

    def texts(self, taps: tuple[str, ...], tokens: int, report: Progress) -> list[WrittenText]:
        """Let the base write, and keep its hidden states at the `taps`."""
        base, spec = self._base.base, full_spec(self._base.base, taps)
        model = build_full_model(base, self._base.base_weights, taps, self._flavour)
        self._shared = weights_of(model)
        with self._half(model, spec, "model", keep=True) as full:
            return write_texts(full, self._base.base_folder, taps, tokens, report)

    def count(self, reading: Reading, texts: list[WrittenText], *, chains: bool) -> Counted:
        """Run the module as `reading` has it over the texts; `chains` also go on from its own states."""
        config, base = reading.config, self._base.base
        tensors = Overlay(self._module.tensors, reading.tensors)
        ids = self._module.draft_ids
        model = build_recycler(config, base, tensors, self._shared, ids, self._flavour)
        tokens = np.arange(base.vocab_size) if ids is None else np.asarray(ids)
        first, second = [], list[bool]()
        with self._half(model, recycler_spec(config, base, ids), "recycler") as module:
            for text in texts:
                states = self._states(config, tensors, text)
                first.append(_first(module, text, states, reading.shift, tokens))
                if chains:
                    second += _chains(module, text, states, tokens)
        return Counted(np.concatenate(first), np.array(second, bool))

    def _states(self, config: RecyclerConfig, tensors: Tensors, text: WrittenText) -> Floats:
        """Return what the module reads [S, n·H]: hidden states side by side, or what it makes of them."""
        taps = [text.states[tap] for tap in config.tap]
        if config.fusion is None:
            return np.ascontiguousarray(np.concatenate(taps, axis=1))
        eps, norms = config.layers_of(self._base.base).norm.eps, [tensors.float32(n) for n in config.fusion_norms()]
        if len(norms) == len(taps):
            taps = [_normalised(tap, norm, eps) for tap, norm in zip(taps, norms, strict=True)]
        joined = np.concatenate(taps, axis=1)
        if len(norms) == 1:
            joined = _normalised(joined, norms[0], eps)
        return np.ascontiguousarray(joined @ tensors.float32(FUSION).T)

    @contextmanager
    def _half(self, model: OnnxModel, spec: GraphSpec, name: str, *, keep: bool = False) -> Iterator[Half]:
        """Write a graph and open it; its weights are deleted afterwards unless other graphs share them."""
        path = self._work / f"{name}.onnx"
        self._write.save(model, path)
        half = Half(open_session(path, spec, "cpu", self._threads), spec, self._base.base.context_length)
        try:
            yield half
        finally:
            half.close()
            if not keep:
                path.with_name(f"{path.name}.data").unlink()


def _first(module: Half, text: WrittenText, states: Floats, shift: int, tokens: NDArray[np.int64]) -> Flags:
    """Tell where the module's first proposals are right; the embedding may stand `shift` tokens further."""
    count = len(text.ids) - 2
    rows = np.ascontiguousarray(states[:count])
    module.crop(0)
    ids = text.ids[1 + shift : 1 + shift + count]
    rows = rows[: len(ids)]
    logits = module.read(ids, rows, np.empty_like(rows), keep=len(ids))
    right: Flags = tokens[logits.argmax(-1)] == text.best[1 + shift : 1 + shift + len(ids)]
    return right


def _chains(module: Half, text: WrittenText, states: Floats, tokens: NDArray[np.int64]) -> list[bool]:
    """Go on from the module's own state behind every row, with the text's next token; tell where it is right.

    (One step: most heads are trained for few, and what comes after those says little about how they were trained.)
    """
    module.crop(0)
    if module.spec.places > 1:
        rows = np.ascontiguousarray(states[: len(text.ids) - 3])
        module.read(text.ids[1 : 1 + len(rows)], rows, np.empty_like(rows), keep=len(rows))
        second: Flags = tokens[module.by_place[:, 1].argmax(-1)] == text.best[2 : 2 + len(rows)]
        return list(map(bool, second))
    if module.spec.longest_chain is not None:
        return []
    right: list[bool] = []
    made = np.empty((1, module.spec.state_size), np.float32)
    for row in range(len(text.ids) - 3):
        own = np.empty_like(made)
        module.read([text.ids[row + 1]], np.ascontiguousarray(states[row : row + 1]), own)
        logits = module.read([text.ids[row + 2]], own, made)
        right.append(bool(tokens[logits[-1].argmax()] == text.best[row + 2]))
        module.crop(row + 1)
    return right


def _normalised(x: Floats, weight: Floats, eps: float) -> Floats:
    scaled: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight
    return scaled
