"""What a quantization costs, as `quantize`, `export` and `inspect` say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def fidelity_line(precision: str, quantization: Mapping[str, Any]) -> str:
    """Say in one line what a manifest's `quantization` costs, or how to know."""
    cost = quantization.get("fidelity") or {}
    equal = cost.get("equal_runs")
    epsilon = cost.get("epsilon", 0)
    within = "verify writes full's text here" if equal else f"verify's logits differ from full's by up to {epsilon:.2g}"
    if "perplexity" not in cost:
        return f"{precision}: {within}; what quality it costs was not measured: --compare does, and loads float32"
    parts = [_perplexity(cost, (quantization.get("source") or {}).get("file"))]
    if "divergence" in cost:
        parts.append(f"divergence {cost['divergence']:.4f} nats a token")
    parts.append(f"same best token at {cost['top1_agreement']:.1%} of places")
    if _has_acceptance(cost):
        parts.append(f"acceptance {cost['acceptance_fp32']:.1%} to {cost['acceptance']:.1%}")
    return f"{precision}: {', '.join(parts)}; {within}"


def method_line(quantization: Mapping[str, Any]) -> str | None:
    """Say in one line how a bundle is calibrated, or which file's blocks it keeps; None for another."""
    if source := quantization.get("source"):
        return _source_line(source)
    again = _requantized(quantization.get("requantized") or {})
    calibration = quantization.get("calibration")
    if not calibration:
        return again.lstrip("; ") or None
    tuning = calibration.get("tuning")
    tuned = f"; scales tuned on {tuning['tokens']:,} tokens" if tuning else ""
    return (
        f"calibrated on {calibration['tokens']:,} tokens ({calibration['text']}): "
        f"{calibration['bits_per_weight']:.2f} bits a weight in the layers, "
        f"8 bits for {len(calibration['eight_bits'])} of {calibration['matrices']} matrices{tuned}{again}"
    )


def fidelity_table(precision: str, cost: Mapping[str, Any]) -> Table:
    """Show the cost as a table, float32 beside it."""
    table = Table("", "fp32", precision, title=f"{cost['tokens']} tokens: {cost['text']}", title_justify="left")
    table.add_row("perplexity", f"{cost['perplexity_fp32']:.4f}", f"{cost['perplexity']:.4f}")
    table.add_row("divergence, nats a token", "0", f"{cost['divergence']:.5f}")
    table.add_row("same best token", "", f"{cost['top1_agreement']:.2%}")
    if _has_acceptance(cost):
        table.add_row("acceptance", f"{cost['acceptance_fp32']:.2%}", f"{cost['acceptance']:.2%}")
    within = "exact here" if cost["equal_runs"] else f"within {cost['epsilon']:.3g} logits"
    table.add_row("verify against full", "exact", within)
    return table


def _source_line(source: Mapping[str, Any]) -> str:
    """Say what is stored as the file has it, and what is computed."""
    kept = [f"{text} bit by bit" for text in _counted(source["exact"])]
    near = _counted(source["near"])
    if near:
        kept.append(f"{' and '.join(near)} within {source['deviation']:.2%} of their values")
    return f"stored from {source['file']}: {', '.join(kept)}; products are computed with activations in 8 bits"


def _requantized(kinds: Mapping[str, int]) -> str:
    """Say which weights were quantized before, and have been rounded a second time; nothing where none were."""
    return f"; rounded a second time: {' and '.join(_counted(kinds))}" if kinds else ""


def _counted(kinds: Mapping[str, int]) -> list[str]:
    return [f"{kind} ({count / 1e6:.1f} M weights)" for kind, count in kinds.items()]


def _perplexity(cost: Mapping[str, Any], file: str | None) -> str:
    """Write both perplexities; `file` names what float32 was, where that was a quantized file already."""
    change = cost["perplexity"] / cost["perplexity_fp32"] - 1
    before, after = f"{cost['perplexity_fp32']:.3f}", f"{cost['perplexity']:.3f} ({change:+.2%})"
    return f"perplexity of {file} {before}, here {after}" if file else f"perplexity {before} to {after}"


def _has_acceptance(cost: Mapping[str, Any]) -> bool:
    return cost.get("acceptance") is not None and cost.get("acceptance_fp32") is not None
