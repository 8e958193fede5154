"""The curves of a training, from its log. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from recycle_onnx.errors import InputError
from recycle_onnx.picture import save_plot
from recycle_onnx.training.log import LOG, read_log

POINTS = 200
"""Of a curve: steps are averaged down to this many."""


def write_curves(folder: Path, path: Path) -> None:
    """Plot losses, acceptance by place and learning rate of the last training of the checkpoint `folder`.

    Raises:
        InputError: it was never trained, or has a log of another version.
        RecycleError: the file cannot be written.
    """
    lines = read_log(folder)
    if not lines:
        raise InputError(f"{folder / LOG}: no steps to draw; train first")
    try:
        columns = {name: np.array([line[name] for line in lines], dtype=float) for name in lines[0]}
        steps, rates = columns["step"], columns["acceptance"]
        series = {name: columns[name] for name in ("next_token", "recycle", "learning_rate")}
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / LOG}: not the log of this version ({error}); train again") from error
    figure = Figure(figsize=(12.6, 3.6), layout="constrained")
    loss, acceptance, rate = figure.subplots(1, 3)
    _curve(loss, steps, series["next_token"], "full model")
    _curve(loss, steps, series["recycle"], "module")
    loss.set_ylabel("loss (nats a token)")
    for place in range(rates.shape[1]):
        _curve(acceptance, steps, rates[:, place], f"place {place + 1}")
    acceptance.set_ylabel("accepted, on training text")
    acceptance.set_ylim(0, 1)
    rate.plot(steps, series["learning_rate"])
    rate.set_ylabel("learning rate")
    for axes in (loss, acceptance, rate):
        axes.set_xlabel("step")
    for axes in (loss, acceptance):
        axes.legend(fontsize=7)
    figure.suptitle(folder.resolve().name, fontsize=10)
    save_plot(figure, path)


def _curve(axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], label: str) -> None:
    """Plot every step in pale, and means of equally many steps."""
    (line,) = axes.plot(steps, values, alpha=0.3, linewidth=0.6)
    parts = min(POINTS, len(steps))
    means = [[part.mean() for part in np.array_split(column, parts)] for column in (steps, values)]
    axes.plot(*means, color=line.get_color(), label=label)
