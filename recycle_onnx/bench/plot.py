"""Measurements as a picture. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from recycle_onnx.bench.run import Measurement
from recycle_onnx.picture import save_plot

BAR, LABELLED, PREDICTED = "#4878a8", "#a8b8c8", "#c44e52"


def write_plot(results: Sequence[Measurement], path: Path, title: str) -> None:
    """Plot tokens per second of every strategy, one panel a setting; a mark shows what step costs predict.

    Raises:
        RecycleError: the file cannot be written.
    """
    settings = [list(group) for _, group in groupby(results, key=lambda r: (r.threads, r.context))]
    figure = Figure(figsize=(1.2 + 3.8 * len(settings), 3.6), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        places = range(len(group))
        speeds = [r.decode_tokens_per_second for r in group]
        spread = [
            [speed - r.interval[0] for speed, r in zip(speeds, group, strict=True)],
            [r.interval[1] - speed for speed, r in zip(speeds, group, strict=True)],
        ]
        # pale: the text may differ, or acceptance was forced
        colours = [LABELLED if r.label or r.strategy == "alternate" else BAR for r in group]
        bars = axes.bar(places, speeds, yerr=spread, color=colours, capsize=3)
        axes.bar_label(bars, [f"{r.measured_speedup:.2f}x" for r in group], label_type="center", color="white")
        predicted = [
            (p, r.predicted_speedup * speeds[0]) for p, r in zip(places, group, strict=True) if r.predicted_speedup
        ]
        axes.plot(*zip(*predicted, strict=True), "_", color=PREDICTED, markersize=24, label="predicted by step costs")
        axes.set_xticks(list(places), [r.strategy + (f"\n{r.label}" if r.label else "") for r in group], fontsize=8)
        axes.set_title(f"threads {group[0].threads or 'default'}, context {group[0].context}", fontsize=9)
        axes.set_ylabel("tokens/s (median, 95 %)")
        axes.legend(fontsize=7, loc="upper left")
        axes.margins(y=0.2)
    figure.suptitle(title, fontsize=10)
    save_plot(figure, path)
