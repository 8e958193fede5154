"""Measurements as a picture. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recycle_onnx.bench.run import Measurement
from recycle_onnx.picture import save_plot

BAR, LABELLED, PREDICTED = "#4878a8", "#a8b8c8", "#c44e52"


def write_plot(results: Sequence[Measurement], path: Path, title: str) -> None:
    """Plot tokens per second of every strategy, one panel a number of threads.

    Several contexts become lines from the shortest text to the longest. A single one becomes bars, with marks for what
    step costs predict.

    Raises:
        RecycleError: the file cannot be written.
    """
    panels = [list(group) for _, group in groupby(results, key=lambda r: r.threads)]
    figure = Figure(figsize=(1.2 + 3.8 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        contexts = {r.context for r in panel}
        (_lines if len(contexts) > 1 else _bars)(axes, panel)
        only = f", context {panel[0].context}" if len(contexts) == 1 else ""
        axes.set_title(f"threads {panel[0].threads or 'default'}{only}", fontsize=9)
        axes.set_ylabel("tokens/s (median, 95 %)")
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save_plot(figure, path)


def _lines(axes: Axes, results: Sequence[Measurement]) -> None:
    """Draw a line for each strategy; a dashed one's text may differ from the full model's, or is not real."""
    for strategy in dict.fromkeys(r.strategy for r in results):
        own = sorted((r for r in results if r.strategy == strategy), key=lambda r: r.context)
        contexts, speeds = [r.context for r in own], [r.decode_tokens_per_second for r in own]
        dash = "--" if _other_text(own[0]) else "-"
        axes.errorbar(contexts, speeds, yerr=_spread(own), fmt=f"o{dash}", capsize=2, label=_label(own[0]))
    axes.set_xscale("log", base=2)
    ticks = sorted({r.context for r in results})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set_xlabel("context (tokens before the new ones)")
    axes.set_ylim(bottom=0)


def _bars(axes: Axes, results: Sequence[Measurement]) -> None:
    """Draw a bar for each strategy; a pale one's text may differ from the full model's, or is not real."""
    places = range(len(results))
    speeds = [r.decode_tokens_per_second for r in results]
    colours = [LABELLED if _other_text(r) else BAR for r in results]
    bars = axes.bar(places, speeds, yerr=_spread(results), color=colours, capsize=3)
    axes.bar_label(bars, [f"{r.measured_speedup:.2f}x" for r in results], label_type="center", color="white")
    predicted = [
        (p, r.predicted_speedup * speeds[0]) for p, r in zip(places, results, strict=True) if r.predicted_speedup
    ]
    axes.plot(*zip(*predicted, strict=True), "_", color=PREDICTED, markersize=24, label="predicted by step costs")
    axes.set_xticks(list(places), [_label(r) for r in results], fontsize=8)
    axes.margins(y=0.2)


def _other_text(result: Measurement) -> bool:
    return result.label is not None or result.strategy == "alternate"


def _label(result: Measurement) -> str:
    return result.strategy + (f"\n{result.label}" if result.label else "")


def _spread(results: Sequence[Measurement]) -> list[list[float]]:
    """Return how far each interval reaches below and above the median."""
    return [
        [r.decode_tokens_per_second - r.interval[0] for r in results],
        [r.interval[1] - r.decode_tokens_per_second for r in results],
    ]
