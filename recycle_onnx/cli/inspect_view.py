"""What `inspect` has to say, as rows of a table that fits a screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recycle_onnx.cli.fidelity import fidelity_line, method_line

CONVENTIONS = (
    "layer", "tap", "concat", "norms_before_projection", "final_norm", "recycle", "window", "qk_norm", "embedding",
    "lm_head", "draft_vocabulary",
)  # fmt: skip
QUANTIZATION = ("bits", "block_size", "symmetric", "method", "keep", "activations")
Row = tuple[str, str]


def rows(description: dict[str, Any], graphs: bool) -> Iterator[Row]:
    """Yield names and values; with `graphs` also the inputs and outputs of each graph."""
    yield from _bundle(description)
    yield from _base(description["base"])
    for end in description.get("stop_ids", ()):
        yield f"ends at {end['id']} {end['token'] or ''}", ", ".join(end["named_by"])
    if source := description["source"]:
        known = {name: value for name, value in source.items() if name != "stop_ids" and value is not None}
        yield "source", _text(known)
    yield from _quantization(description)
    yield from _module(description)
    sizes = description["bytes"]
    yield "files", f"{len(sizes)} of {sum(sizes.values()) / 1e6:,.1f} MB: {', '.join(sizes)}"
    for graph, contract in description.get("contracts", {}).items() if graphs else ():
        for part in ("inputs", "optional_inputs", "outputs"):
            lines = [f"{name}: {kind}" for name, kind in contract[part].items() if ".0." in name or "." not in name]
            yield f"{graph} {part.replace('_', ' ')}", "\n".join(lines)


def _bundle(description: dict[str, Any]) -> Iterator[Row]:
    if "format" in description:
        precision, flavour = description["precision"], description["flavour"]
        yield "bundle", f"precision {precision}, flavour {flavour}, format {description['format']}"
        yield "strategies", ", ".join(description["strategies"])


def _base(base: dict[str, Any]) -> Iterator[Row]:
    yield "base", base["model_type"] + (f", {base['parameters']:,} parameters" if "parameters" in base else "")
    heads = f"{base['num_heads']} heads ({base['num_kv_heads']} KV) of {base['head_dim']}"
    yield (
        "dimensions",
        f"{base['num_layers']} layers of {base['hidden_size']}, {heads}, feed-forward {base['intermediate_size']}",
    )
    yield "vocabulary", f"{base['vocab_size']:,} tokens{', tied embeddings' * base['tied_embeddings']}"
    yield "context", f"{base['context_length']:,} tokens"


def _quantization(description: dict[str, Any]) -> Iterator[Row]:
    quantization = description.get("quantization")
    if not quantization:
        return
    yield "quantization", _text({name: quantization[name] for name in QUANTIZATION if name in quantization})
    if made := method_line(quantization):
        yield "calibration", made
    if cost := quantization.get("fidelity"):
        yield "fidelity", fidelity_line(description["precision"], quantization)
        measured_on = f"{cost['tokens']:,} tokens of {cost['text']}" if "tokens" in cost else cost["text"]
        yield "measured on", measured_on


def _module(description: dict[str, Any]) -> Iterator[Row]:
    recycler = description["recycler"]
    if not recycler:
        yield "module", "none"
        return
    count = recycler.get("num_layers")
    ratio = f" ({description['parameter_ratio']:.1%} of the base)" if description["parameter_ratio"] else ""
    parameters = f"{recycler.get('parameters', 0):,} parameters{ratio}"
    yield "module", f"{count} layer{'' if count == 1 else 's'}, {parameters}, {_trained(description)}"
    if description["module_trained"]:
        yield "acceptance", _acceptance(recycler)
    yield "conventions", _text({name: recycler.get(name) for name in CONVENTIONS})
    if size := description.get("draft_vocabulary"):
        yield "draft vocabulary", f"{size:,} tokens"


def _trained(description: dict[str, Any]) -> str:
    if not description["module_trained"]:
        return "untrained: `recycle-onnx train` its checkpoint, or attach a trained one"
    depth = description["recycler"].get("trained_depth")
    return f"trained for chains of {depth}" if depth else "trained"


def _acceptance(recycler: dict[str, Any]) -> str:
    """Say how many proposals were accepted when the module was published, else at the end of its training."""
    published = recycler.get("acceptance")
    if isinstance(published, dict) and isinstance(rate := published.get("rate"), float):
        return f"{rate:.1%} of {published.get('proposals')} proposals ({published.get('text')})"
    runs = (recycler.get("training") or {}).get("runs")
    rates = runs[-1].get("held_out_acceptance") if isinstance(runs, list) and runs else None
    places = [rates] if isinstance(rates, float) else rates
    if not isinstance(places, list | tuple) or not all(isinstance(rate, float) for rate in places):
        return "not measured"
    listed = ", ".join(f"{rate:.1%}" for rate in places)
    return f"{listed} on held-out text, in training{', by place in a chain' if len(places) > 1 else ''}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
