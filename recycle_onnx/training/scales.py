"""Scales of a quantized base, and its norms, tuned so that it says what the float base says.

Codes and zero points stay. What is minimised is the divergence from the float base's own distribution, on text of
several kinds that it has read once (as in mlx-lm's DWQ). Targets and own text are the trainer's, and kept in its
caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress
from recycle_onnx.runtime.ort.allocator import give_back
from recycle_onnx.script import Opening, Script
from recycle_onnx.training.block_linear import BlockLinear
from recycle_onnx.training.budget import learning_rate
from recycle_onnx.training.data import Windows, batches
from recycle_onnx.training.layers import RMSNorm
from recycle_onnx.training.likeliest_loss import divergence
from recycle_onnx.training.model import FullModel
from recycle_onnx.training.options import Precision, TrainingOptions
from recycle_onnx.training.own_text import OwnText
from recycle_onnx.training.precision import TYPES, best_precision, computing, product_speeds
from recycle_onnx.training.storage import load_base
from recycle_onnx.training.target_cache import SHARD, CachedTargets, TargetFiles
from recycle_onnx.tuning import FloatModel, Grid, Tuned

DEVICE = torch.device("cpu")
"""As all of an export: it needs no GPU."""
OWN_WINDOWS = 256
"""Windows of own text beside those of calibration: with 256 tokens each, 65 536 tokens."""
WRITTEN_AT_ONCE = SHARD
"""Of them, as many as share a file of targets. (A training writes 128, which hold more memory than the steps here.)"""
CACHE_BYTES = 800_000_000
"""Of all that write side by side. A model of 135 M parameters has 377 MB of them in bfloat16, so two write; in float32
one. Within an export two held 2.1 GB with all else, 3.2 GB in float32. (In bfloat16 they once held 4.6 GB; why is not
known, and the same export held 2.1 GB later.)"""
STEPS, BATCH = 96, 4
"""Steps, and windows of a step."""
AT_ONCE = 1
"""Windows of a step whose activations are held at once."""
PEAK = 4e-4
"""Learning rate, relative to a scale. In a model of 135 M parameters all steps at 4e-4 brought the divergence on
held-out text from 0.038 to 0.024 nats a token. Twelve steps at 2e-3 made it worse (0.046 to 0.051)."""
NORMS = 0.5
"""Of the learning rate, for norms."""
HELD_OUT = 12
"""One window in so many is measured on, not learnt from."""
WORK_A_TOKEN = 8
"""Operations of a step for each parameter: two forwards, four backwards, and what the products do not count."""
LONGEST = 30 * 60.0
"""Seconds of steps beyond which a model is not tuned."""
STAGE = "tuning scales"


def tune(
    model: FloatModel,
    matrices: Mapping[str, Sequence[Grid]],
    windows: NDArray[np.int64],
    report: Progress,
    *,
    write: bool,
) -> Tuned | None:
    """Learn better scales for the quantized `matrices` of a base; see `recycle_onnx.tuning.Tuner`.

    An interrupted tuning begins again, but finds own text and targets in the caches.

    Raises:
        RecycleError: the disk is full or not writable.
    """

    def notice(text: str) -> None:
        report(0, 0, text)

    precision = best_precision(DEVICE, lambda _: None)
    seconds = _seconds(model, windows.shape[1], precision)
    if seconds > LONGEST:
        notice(f"scales are not tuned, which would take some {seconds / 60:.0f} minutes here")
        return None
    base = load_base(model.base, model.weights, TYPES[precision])
    texts = _texts(model, base, windows.astype(np.uint32), report, write=write)
    give_back()  # what writing has freed, the steps would hold too
    targets = CachedTargets(base, model.digest, texts, _cache_bytes())
    targets.fill(_reporting("the model reads text to tune scales with", report))
    give_back()
    tuning = _Tuning(base, matrices, np.concatenate(texts), targets, precision)
    tuned = tuning.run(report)
    if tuned.after < tuned.before:
        return tuned
    notice("scales stay as they were, for tuning them did no good on held-out text")
    return None


class _Tuning:
    """A base whose products are quantized, its text, and the optimiser."""

    def __init__(
        self,
        base: FullModel,
        matrices: Mapping[str, Sequence[Grid]],
        text: Windows,
        targets: CachedTargets,
        precision: Precision,
    ) -> None:
        self._base, self._text, self._targets, self._precision = base, text, targets, precision
        self._head = base.lm_head.weight.detach()
        self._products = _replace_products(base, matrices, TYPES[precision])
        self._norms = _replace_norms(base)
        base.model.embed_tokens.register_forward_hook(lambda _module, _ids, rows: rows.float())  # the residual stream
        changes = [change for product in self._products.values() for change in product.changes]
        factors = [norm.change for norm in self._norms.values()]
        self._optimizer = torch.optim.Adam([{"params": changes}, {"params": factors}], betas=(0.9, 0.95))
        numbers = range(len(text))
        self._held_out = list(numbers)[HELD_OUT // 2 :: HELD_OUT] or list(numbers)
        self._learnt = [number for number in numbers if number not in set(self._held_out)] or list(numbers)

    def run(self, report: Progress) -> Tuned:
        """Take all steps; return what they changed on held-out text."""
        before = self._measure()
        size = min(BATCH, len(self._learnt))
        for step, places in enumerate(islice(batches(len(self._learnt), size, seed=0), STEPS)):
            report(step, STEPS, STAGE)
            self._step([self._learnt[place] for place in places], learning_rate(PEAK, step / STEPS, step))
        report(STEPS, STEPS, STAGE)
        return Tuned(
            {name: product.scales() for name, product in self._products.items()},
            {name: value for place, norm in self._norms.items() for name, value in norm.tuned(place).items()},
            STEPS * size * self._text.shape[1],
            before,
            self._measure(),
        )

    def _step(self, numbers: list[int], rate: float) -> None:
        for group, share in zip(self._optimizer.param_groups, (1.0, NORMS), strict=True):
            group["lr"] = rate * share
        self._optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(numbers), AT_ONCE):
            held = numbers[start : start + AT_ONCE]
            (self._divergence(held) * (len(held) / len(numbers))).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _divergence(self, numbers: list[int]) -> Tensor:
        """Compute the divergence from the float base, mean over windows."""
        ids = torch.from_numpy(self._text[numbers].astype(np.int64))
        targets = self._targets.read(numbers)
        with computing(self._base, DEVICE, self._precision):
            hidden, _ = self._base.hidden(ids)
        config = self._base.config
        return divergence(
            hidden.flatten(0, 1) * config.logit_scale,
            self._head,
            targets.ids.flatten(0, 1),
            targets.log_probabilities.flatten(0, 1),
            cap=config.logit_softcap,
        )

    @torch.no_grad()
    def _measure(self) -> float:
        parts = [self._held_out[start : start + BATCH] for start in range(0, len(self._held_out), BATCH)]
        total = sum(len(part) * self._divergence(part).item() for part in parts)
        return total / len(self._held_out)


class _ScaledNorm(nn.Module):
    """A norm whose output is multiplied by a learnt vector, held as relative changes."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()
        weight = norm.weight
        assert isinstance(weight, Tensor)
        self.change = nn.Parameter(torch.zeros_like(weight))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.float()) * (1 + self.change)
        return y

    def tuned(self, place: str) -> dict[str, NDArray[np.float32]]:
        """Return the norm's own parameters with the vector in them, by name."""
        factors = (1 + self.change).detach()
        return {f"{place}.{name}": (value * factors).numpy() for name, value in self.norm.named_parameters()}


def _replace_products(
    base: FullModel, matrices: Mapping[str, Sequence[Grid]], dtype: torch.dtype
) -> dict[str, BlockLinear]:
    products = {}
    for name, grids in matrices.items():
        place = name.removesuffix(".weight")
        old = base.get_submodule(place)
        assert isinstance(old, nn.Linear)
        products[name] = BlockLinear(grids, old.bias, dtype)
        _put(base, place, products[name])
    return products


def _replace_norms(base: FullModel) -> dict[str, _ScaledNorm]:
    norms = {place: _ScaledNorm(module) for place, module in base.named_modules() if _is_norm(module)}
    for place, norm in norms.items():
        _put(base, place, norm)
    return norms


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, RMSNorm | nn.LayerNorm)


def _put(base: FullModel, place: str, module: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(base.get_submodule(parent), name, module)


def _texts(model: FloatModel, base: FullModel, windows: Windows, report: Progress, *, write: bool) -> list[Windows]:
    """Return the windows of calibration, and as long ones that the base writes, where it can write."""
    if not write:
        return [windows]
    try:
        script = Script.of(model.folder, TrainingOptions().temperature)
    except InputError:  # no jinja2, or a template that refuses: the calibration's text remains
        return [windows]
    files = TargetFiles(base, model.digest, _cache_bytes())
    begun, length = _openings(script, windows), windows.shape[1]
    own = OwnText(base, model.digest, script, begun, OWN_WINDOWS, length, 0, files, WRITTEN_AT_ONCE, CACHE_BYTES)
    return [windows, own.windows(_reporting("the model writes text to tune scales with", report))]


def _openings(script: Script, windows: Windows) -> list[Opening]:
    """Return what own text begins with: one after the other a conversation, and a text of `windows` to go on from."""
    some = windows[_evenly(len(windows), OWN_WINDOWS // 2)]
    begun = script.going_on(script.tokenizer.decode(row.tolist()) for row in some)
    starts = [script.starts[place] for place in _evenly(len(script.starts), len(begun))]
    return [opening for pair in zip(starts, begun, strict=True) for opening in pair]


def _evenly(count: int, wanted: int) -> list[int]:
    """Return `wanted` places among `count`, spread evenly; some more than once where there are fewer."""
    return [place * count // wanted for place in range(wanted)]


def _seconds(model: FloatModel, length: int, precision: Precision) -> float:
    """Estimate the seconds of the steps, by the speed of matrix products here."""
    parameters = sum(int(np.prod(shape)) for shape in model.base.tensor_shapes().values())
    return WORK_A_TOKEN * parameters * STEPS * BATCH * length / (1e9 * product_speeds(DEVICE)[precision])


def _cache_bytes() -> int:
    return int(TrainingOptions().cache_gb * 1e9)


def _reporting(stage: str, report: Progress) -> Progress:
    """Make a callback that reports how far a stage is, whatever comes now."""
    report(0, 0, stage)
    return lambda completed, total, _what: report(completed, total, stage)
