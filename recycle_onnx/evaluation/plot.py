"""Evaluations as pictures. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recycle_onnx.evaluation.acceptance import Acceptance, described
from recycle_onnx.evaluation.tasks import TaskAccuracy

FULL, ALTERNATE, CHANCE = "#4878a8", "#e1974c", "#808080"
WIDTH, PALE = 0.36, 0.35


def picture_of_acceptance(kinds: Sequence[Acceptance]) -> bytes:
    """Draw a PNG of acceptances by place in a chain."""
    figure = _figure()
    _acceptance(figure, kinds)
    return _png(figure)


def picture_of_tasks(results: Sequence[TaskAccuracy]) -> bytes:
    """Draw a PNG of accuracies."""
    figure = _figure()
    _tasks(figure, results)
    return _png(figure)


def _figure() -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _acceptance(figure: Figure, kinds: Sequence[Acceptance]) -> None:
    """Plot how often a proposal is right, by its place in the chain."""
    axes = figure.subplots()
    for measured in kinds:
        places = range(1, len(measured.by_place) + 1)
        line = "--o" if measured.temperature else "-o"
        axes.plot(places, measured.by_place, line, label=described(measured), markersize=4)
    axes.set_xticks(range(1, kinds[0].chain + 1))
    axes.set_ylim(0, 1)
    axes.set_xlabel("place in the chain")
    axes.set_ylabel("accepted, those before being right")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _tasks(figure: Figure, results: Sequence[TaskAccuracy]) -> None:
    """Plot the accuracy of the full model and of `alternate`, chance as a mark; pale where it tells nothing."""
    figure.set_figwidth(max(6.4, 1.0 + 1.1 * len(results)))
    axes = figure.subplots()
    full, alternate = [result.full for result in results], [result.alternate for result in results]
    for shift, name, colour, estimates in (
        (-WIDTH / 2, "full", FULL, full), (WIDTH / 2, "alternate", ALTERNATE, alternate),
    ):  # fmt: skip
        for place, (result, estimate) in enumerate(zip(results, estimates, strict=True)):
            if estimate is None:
                continue
            mean, low, high = estimate
            axes.bar(
                place + shift, mean, WIDTH, yerr=[[mean - low], [high - mean]], capsize=3, color=colour,
                alpha=1.0 if result.informative else PALE, label=None if place else name,
            )  # fmt: skip
    by_chance = [result.chance for result in results]
    axes.plot(range(len(results)), by_chance, "_", color=CHANCE, markersize=30, label="chance")
    axes.set_xticks(range(len(results)), [f"{result.task}\n{result.metric}" for result in results], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy (95 %)")
    axes.set_title("pale: not informative", fontsize=9)
    axes.legend(fontsize=8, markerscale=0.4)
