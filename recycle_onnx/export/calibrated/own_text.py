"""Text that the full model writes itself, several texts side by side, one token of each a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx import __version__
from recycle_onnx.bundle import Bundle, graph_file
from recycle_onnx.cache import cache_folder
from recycle_onnx.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, LOGITS_TO_KEEP, GraphSpec
from recycle_onnx.export import heavy
from recycle_onnx.export.block_quantizer import Quantization
from recycle_onnx.export.calibrated.kept_text import Ids, kept_text
from recycle_onnx.export.flavours import flavour_named
from recycle_onnx.export.lazy import load_lazily
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.ort.native import run
from recycle_onnx.runtime.ort.sessions import open_session, session_options
from recycle_onnx.script import LIKELIEST, Opening, Turn, Writing
from recycle_onnx.temporary import temporary_folder

STAGE = "letting the model write text to calibrate with"


def write(
    bundle: Bundle,
    openings: Sequence[Opening],
    turns: Sequence[Turn],
    length: int,
    threads: int | None,
    report: Progress,
) -> Ids:
    """Write windows of token ids [len(openings), length], each text begun by its opening; the same each time."""

    def write_now() -> Ids:
        with _graph_that_writes(bundle, report) as graph:
            model = _Model(graph, bundle.manifest.graphs["full"], len(openings), length, threads)
            return _written(model, openings, turns, length, report)

    said = [(sorted(turn.ends), turn.then, turn.temperatures) for turn in turns]
    versions = __version__, ort.__version__, heavy.HEAVY
    depends_on = f"{bundle.digest} {versions} {openings} {said}"
    return kept_text(depends_on, (len(openings), length), write_now)


@contextmanager
def _graph_that_writes(bundle: Bundle, report: Progress) -> Iterator[Path]:
    """Give the bundle's full model, or of a heavy one a copy in int8 for as long as it writes.

    A model of 1.1 B parameters would take 5.9 GB, more than all that follows. Its text is drawn at random from the
    model's distribution, which int8 hardly changes; what the model reads there is measured in float32 all the same.
    """
    own = bundle.graph("full")
    if not heavy.is_heavy(bundle):
        yield own
        return
    with ExitStack() as stack:
        try:
            graph = _in_int8(bundle, stack, report)
        except OSError:  # no home, or a full disk: the model itself writes, and takes more memory
            stack.close()
            graph = own
        yield graph


def _in_int8(bundle: Bundle, stack: ExitStack, report: Progress) -> Path:
    """Write a copy of the full model into the user's cache, where it stays as long as the stack is open."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    copy = stack.enter_context(temporary_folder(folder / "int8")) / graph_file("full")
    report(0, 0, "making a copy in int8, which writes text to calibrate with")
    rewriter = flavour_named(bundle.manifest.flavour).rewriter(Quantization(bits=8), silent)
    rewriter.save(load_lazily(bundle.graph("full"), {}), copy)
    return copy


def _written(model: _Model, openings: Sequence[Opening], turns: Sequence[Turn], length: int, report: Progress) -> Ids:
    random = np.random.default_rng(0)
    texts = [Writing(turns, n, deque(opening.ids), opening.turn) for n, opening in enumerate(openings)]
    windows = np.zeros((len(texts), length), np.int64)
    logits = None
    for place in range(length):
        for number, text in enumerate(texts):
            if text.waiting:
                windows[number, place] = text.waiting.popleft()
            elif logits is not None:
                windows[number, place] = text.say(_sample(logits[number], text.temperature, random))
        if place + 1 < length:
            logits = model.step(windows[:, place : place + 1])
        report(place + 1, length, STAGE)
    return windows


def _sample(logits: NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    """Draw a token among the likeliest of `logits` [V]."""
    ids = np.argpartition(logits, -min(LIKELIEST, len(logits)))[-LIKELIEST:]
    values = logits[ids].astype(np.float64) / max(temperature, 1e-4)
    chances = np.exp(values - values.max())
    return int(random.choice(ids, p=chances / chances.sum()))


class _Model:
    """A full model over static caches of `length` rows; all texts are as long as each other."""

    def __init__(self, graph: Path, spec: GraphSpec, texts: int, length: int, threads: int | None) -> None:
        self._session = open_session(graph, spec, "cpu", threads, session_options(threads))
        self._binding = self._session.io_binding()
        shape = (texts, spec.num_kv_heads, length, spec.head_dim)
        self._cache = [ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)) for _ in spec.past_names()]
        for past, present, value in zip(spec.past_names(), spec.present_names(), self._cache, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        self._mask = np.zeros((texts, length), np.int64)
        self._binding.bind_ortvalue_input(LOGITS_TO_KEEP, ort.OrtValue.ortvalue_from_numpy(np.array(1)))
        self._length = 0

    def step(self, ids: Ids) -> NDArray[np.float32]:
        """Return logits [texts, V] behind the next token [texts, 1] of each text."""
        self._mask[:, self._length] = 1
        self._length += 1
        self._binding.bind_cpu_input(INPUT_IDS, np.ascontiguousarray(ids))
        self._binding.bind_cpu_input(ATTENTION_MASK, self._mask)
        self._binding.bind_output(LOGITS)
        run(self._session, self._binding)
        logits: NDArray[np.float32] = self._binding.get_outputs()[-1].numpy()[:, -1]
        return logits
