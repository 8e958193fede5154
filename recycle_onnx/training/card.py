"""The model card of a trained module: what it is, what it was trained on, and how good it is."""

from __future__ import annotations

from typing import Any

from recycle_onnx.checkpoint import RecyclerConfig

ABOUT = """\
# A recyclable module

{layers} that read the base's hidden state ({tap}) at p and the embedding of token p+1, and predict
token p+2 (RecycleGPT, arXiv 2308.03421). Embedding and LM head are the base's. Made with recycle-onnx;
`config.json` states every convention, and the digests of the base it belongs to.

| run | base | text | steps x windows x tokens | chains of | seconds | held-out loss | accepted by place |
|---|---|---|---|---|---|---|---|"""
NOTES = """
Losses are nats a token of the module against the base's distribution (joint runs: against the text); a place is
accepted where both halves' best tokens agree, greedily, on held-out text of the same kind. Whatever licence the
base and the training text have applies to this module too; add it here.
"""


def model_card(config: RecyclerConfig) -> str:
    """Markdown, from what `recycler/config.json` says."""
    runs: list[dict[str, Any]] = list(config.training.get("runs", []))
    layers = f"{config.num_layers} decoder layer{'s' * (config.num_layers > 1)}"
    lines = [ABOUT.format(layers=layers, tap=", ".join(config.tap))]
    for number, run in enumerate(runs, start=1):
        base = "trained jointly" if run.get("joint") else "frozen"
        text = f"the base's own at {run['temperature']}" if run.get("regenerate") else "given"
        size = f"{run['steps']} x {run['batch_size']} x {run['sequence_length']}"
        rates = run["held_out_acceptance"]
        accepted = ", ".join(f"{rate:.1%}" for rate in (rates if isinstance(rates, list | tuple) else [rates]))
        lines.append(
            f"| {number} | {base} | {text} | {size} | {run.get('depth', 1)} | {run['seconds']:.0f} "
            f"| {run['held_out_recycle']:.3f} | {accepted} |"
        )
    return "\n".join([*lines, NOTES])
