"""Zero-shot accuracy of the full model and of `alternate`, row by row, and whether it says anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from recycle_onnx.evaluation.alternating import DECODINGS, Decoding
from recycle_onnx.evaluation.estimate import Estimate, estimate, paired
from recycle_onnx.evaluation.task_rows import Row
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.model import Model

Sample = Mapping[str, Any]
METRICS = ("acc", "acc_norm")
"""The harness's accuracies: by the likeliest answer, and by the likeliest for its length."""
STANDARD_ERRORS = 3
"""Above chance, for a task to tell anything: chance alone goes so far once in 700 tasks."""


@dataclass(frozen=True)
class TaskAccuracy:
    """The accuracy of one metric of one task on `rows` rows: parts of them that are right, and 95 % intervals.

    `full` is the full model's, `full_first` and `module_first` are `alternate`'s with that half saying the first token,
    `alternate` their mean and `difference` what it has more than `full`, row by row; None without a module.
    `informative` says whether `full` is three standard errors above `chance`; where it is not, no difference means
    anything. `unnamed` is the part of the tokens at which the module lacked the word (its draft vocabulary).
    """

    task: str
    metric: str
    rows: int
    chance: float
    informative: bool
    full: Estimate
    full_first: Estimate | None = None
    module_first: Estimate | None = None
    alternate: Estimate | None = None
    difference: Estimate | None = None
    unnamed: float | None = None


def tasks(
    model: Model,
    rows: Mapping[str, list[Row] | None],
    *,
    limit: int | None = None,
    report: Progress = silent,
) -> list[TaskAccuracy]:
    """Evaluate the tasks that `rows` names, on those rows; where it has None, on data that the harness fetches.

    Raises:
        ModuleNotFoundError: lm-eval is not installed.
        RecycleError: a data set cannot be fetched.
    """
    from recycle_onnx.evaluation.harness import RecycleLM, evaluate, load_task

    measured = []
    for name, task_rows in rows.items():
        task, lm = load_task(name, task_rows), RecycleLM(model, report=report, note=name)
        samples: dict[Decoding, list[dict[str, Any]]] = {}
        for decoding in DECODINGS if "alternate" in model.strategies else DECODINGS[:1]:
            lm.decoding = decoding
            samples[decoding] = evaluate(lm, task, limit)
        measured += [
            accuracy(name, metric, samples, lm.unnamed()) for metric in METRICS if metric in samples["full"][0]
        ]
    return measured


def accuracy(
    task: str, metric: str, samples: Mapping[Decoding, Sequence[Sample]], unnamed: float | None = None
) -> TaskAccuracy:
    """Compare the decodings on the same rows."""
    right = {name: [float(sample[metric]) for sample in graded] for name, graded in samples.items()}
    base, by_chance = right["full"], chance(samples["full"])
    error = (fmean(base) * (1 - fmean(base)) / len(base)) ** 0.5
    result = TaskAccuracy(
        task=task,
        metric=metric,
        rows=len(base),
        chance=by_chance,
        informative=fmean(base) - by_chance > STANDARD_ERRORS * error,
        full=estimate(base),
    )
    if len(right) == 1:
        return result
    both = [fmean(pair) for pair in zip(right["full_first"], right["module_first"], strict=True)]
    return replace(
        result,
        full_first=estimate(right["full_first"]),
        module_first=estimate(right["module_first"]),
        alternate=estimate(both),
        difference=paired(base, both),
        unnamed=unnamed,
    )


def chance(samples: Sequence[Sample]) -> float:
    """Return the accuracy that guessing would give.

    A task whose answer is one of all words (LAMBADA) has no choices, and chance is 0.
    """
    choices = [tuple(continuation for _, continuation in sample["arguments"]) for sample in samples]
    if len(choices[0]) == 1:
        return 0.0
    if len(set(choices)) == 1 < len(choices):
        return Counter(sample["target"] for sample in samples).most_common(1)[0][1] / len(samples)
    return fmean(1 / len(some) for some in choices)
