"""Evaluations as pictures. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recycle_onnx.evaluation.acceptance import described

FULL, ALTERNATE, CHANCE = "#4878a8", "#e1974c", "#808080"
WIDTH, PALE = 0.36, 0.35
Values = Mapping[str, Any]


def picture_of(what: str, results: Sequence[Values]) -> bytes:
    """A PNG of `acceptance` or `tasks`."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    {"acceptance": _acceptance, "tasks": _tasks}[what](figure, results)
    data = BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def _acceptance(figure: Figure, kinds: Sequence[Values]) -> None:
    """How often a proposal is right, by its place in the chain."""
    axes = figure.subplots()
    for found in kinds:
        places = range(1, len(found["by_place"]) + 1)
        line = "--o" if found["temperature"] else "-o"
        axes.plot(places, found["by_place"], line, label=described(found), markersize=4)
    axes.set_xticks(range(1, kinds[0]["chain"] + 1))
    axes.set_ylim(0, 1)
    axes.set_xlabel("place in the chain")
    axes.set_ylabel("accepted, those before being right")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _tasks(figure: Figure, results: Sequence[Values]) -> None:
    """Accuracy of the full model and of `alternate`, with chance as a mark; pale where it tells nothing."""
    figure.set_figwidth(max(6.4, 1.0 + 1.1 * len(results)))
    axes = figure.subplots()
    for shift, name, colour in ((-WIDTH / 2, "full", FULL), (WIDTH / 2, "alternate", ALTERNATE)):
        for place, found in enumerate(results):
            if found[name] is None:
                continue
            mean, low, high = found[name]
            axes.bar(
                place + shift, mean, WIDTH, yerr=[[mean - low], [high - mean]], capsize=3, color=colour,
                alpha=1.0 if found["informative"] else PALE, label=None if place else name,
            )  # fmt: skip
    by_chance = [found["chance"] for found in results]
    axes.plot(range(len(results)), by_chance, "_", color=CHANCE, markersize=30, label="chance")
    axes.set_xticks(range(len(results)), [f"{found['task']}\n{found['metric']}" for found in results], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy (95 %)")
    axes.set_title("pale: not informative", fontsize=9)
    axes.legend(fontsize=8, markerscale=0.4)
