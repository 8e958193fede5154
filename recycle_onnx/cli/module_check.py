"""How often a module is right on the base beside it, measured in seconds, when it is published and when it is joined.

Both times in the same way, so that the two figures can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recycle_onnx.cli.report import echo, progress, stages
from recycle_onnx.files import temporary_sibling

if TYPE_CHECKING:
    from recycle_onnx.checkpoint import RecyclerConfig

NEW_TOKENS = 40
"""After each opening: some 200 proposals in all, of which a half accepted is certain to 7 percentage points (95 %)."""
FAR = 0.1
"""How much lower than published is more than chance: three standard deviations of that many proposals."""


def measure(checkpoint: Path, beside: Path) -> dict[str, Any]:
    """Export `checkpoint` in int8 to a temporary folder next to `beside`, and count accepted proposals of `verify`.

    Raises:
        RecycleError: the export failed, the disk is full, or the chat template needs jinja2.
    """
    import recycle_onnx
    from recycle_onnx.evaluation.acceptance import acceptance_in_answers
    from recycle_onnx.evaluation.openings import openings
    from recycle_onnx.export import ExportOptions, Quantization, export

    with temporary_sibling(Path.cwd() / beside) as work:
        with stages() as report:
            int8 = Quantization(bits=8)
            export(
                checkpoint,
                work / "bundle",
                ExportOptions(quantization=int8, compare=False, epsilon=False),
                report=report,
            )
        with progress("measuring") as update, recycle_onnx.load(work / "bundle") as model:
            model.stop_ids = frozenset()  # a text that ends early would tell little
            begun, text = openings(model)
            acceptance = acceptance_in_answers(model, begun, chain=1, new_tokens=NEW_TOKENS, report=update)
    rate = acceptance.by_place[0] if acceptance.by_place else 0.0
    return {"rate": rate, "proposals": acceptance.proposals, "text": text, "precision": "int8"}


def compared(measured: dict[str, Any], config: RecyclerConfig) -> str:
    """Say in one line what was measured, and what was published."""
    from recycle_onnx.checkpoint.card import described

    line = f"acceptance: {described(measured)}"
    if (published := _published(config)) is None:
        return f"{line}; nothing was published to compare with"
    return f"{line}; published: {published:.1%}{'' if config.acceptance else ' on held-out text, in training'}"


def warn_if_far_below(measured: dict[str, Any], config: RecyclerConfig, out: Path) -> None:
    """Warn in one line on standard error where the module is right much less often than published."""
    published = _published(config)
    if published is not None and measured["rate"] < published - FAR:
        echo(
            f"warning: {measured['rate']:.1%} is far below the published {published:.1%}; this base may be tuned "
            f"otherwise than the module's: train the module on it (recycle-onnx train {out})",
            err=True,
        )


def _published(config: RecyclerConfig) -> float | None:
    """Return the acceptance that was published, otherwise what the last training measured at the first place."""
    if config.acceptance and isinstance(rate := config.acceptance.get("rate"), float):
        return rate
    runs = config.training.get("runs") or [{}]
    rates = runs[-1].get("held_out_acceptance")
    first = rates[0] if isinstance(rates, list | tuple) and rates else rates
    return first if isinstance(first, float) else None
