"""Pictures of measurements. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recycle_onnx.errors import InputError, RecycleError


def check_plot(path: Path) -> None:
    """Refuse before anything is measured where `save_plot` would.

    Raises:
        InputError: a kind of file that matplotlib does not write, or no folder to write it into.
    """
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(f"{path}: expected a name that ends in one of: {', '.join(kinds)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it, or name another for the plot")


def save_plot(figure: Figure, path: Path) -> None:
    """Write the picture.

    Raises:
        RecycleError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise RecycleError(f"{path}: cannot write the plot ({error.strerror or error})") from error
