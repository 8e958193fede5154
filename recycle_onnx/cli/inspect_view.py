"""What `inspect` has to say, as rows of a table that fits a screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from recycle_onnx.cli.fidelity import fidelity_line, method_line
from recycle_onnx.provenance import COPY

CONVENTIONS = (
    "layer", "tap", "concat", "norms_before_projection", "final_norm", "recycle", "window", "qk_norm", "embedding",
    "lm_head", "draft_vocabulary",
)  # fmt: skip
"""Rows on the module, in this order; what its config has besides is in `--json`."""
OF_HEADS = ("fusion", "join", "residual", "first_norm", "projection_bias", "blocks")
"""Conventions that only modules read from somebody's head have."""
WITHOUT_LAYERS = ("layer", "tap", "lm_head", "draft_vocabulary", "blocks", "projection_bias")
"""All that a module without layers has of them."""
QUANTIZATION = ("bits", "block_size", "symmetric", "method", "keep", "activations")
"""Choices of a quantization, in one row; what was measured of it has a line of its own."""
Row = tuple[str, str]


def rows(description: dict[str, Any], *, graphs: bool, matrices: bool) -> Iterator[Row]:
    """Yield names and values; with `graphs` also the inputs and outputs of each graph, with `matrices` each matrix."""
    yield from _bundle(description)
    yield from _base(description["base"])
    for end in description.get("stop_ids", ()):
        yield f"ends at {end['id']} {end['token'] or ''}", ", ".join(end["named_by"])
    yield from _source(description["source"] or {})
    yield from _quantization(description)
    yield from _matrices(description.get("matrices") or {}, each=matrices)
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
        yield "keys and values", _keys_and_values(description)
        if pooling := description["pooling"]:
            yield "embeddings", f"pooling {pooling}"


def _keys_and_values(description: dict[str, Any]) -> str:
    each = f"{description['kv']}, {description['kv_bytes_per_token'] / 1000:,.1f} kB a token"
    if (rows := description["kv_window_rows"]) is None or rows >= description["base"]["context_length"]:
        return each
    return (
        f"{each}, in layers with a window for {rows:,} tokens at most: "
        f"{description['kv_bytes_of_context'] / 1e6:,.1f} MB for the whole context"
    )


def _base(base: dict[str, Any]) -> Iterator[Row]:
    yield "base", base["model_type"] + (f", {base['parameters']:,} parameters" if "parameters" in base else "")
    heads = f"{base['num_heads']} heads ({base['num_kv_heads']} KV) of {base['head_dim']}"
    yield (
        "dimensions",
        f"{base['num_layers']} layers of {base['hidden_size']}, {heads}, feed-forward {base['intermediate_size']}",
    )
    yield "vocabulary", f"{base['vocab_size']:,} tokens{', tied embeddings' * base['tied_embeddings']}"
    yield "context", f"{base['context_length']:,} tokens"


def _source(source: dict[str, Any]) -> Iterator[Row]:
    """Yield what the base was made from, and the licence that this states: it holds for the weights here too."""
    elsewhere = ("stop_ids", "license", COPY)  # which have rows of their own, or are for programs
    known = {name: value for name, value in source.items() if name not in elsewhere and value is not None}
    if known:
        yield "source", _text(known)
    yield "licence", source.get("license") or "not stated"


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


def _matrices(matrices: dict[str, dict[str, str]], *, each: bool) -> Iterator[Row]:
    """Yield how matrices are stored and computed: `each` of them, or how many in which way."""
    ways = {name: "; ".join(f"{side} {text}" for side, text in way.items()) for name, way in matrices.items()}
    if each:
        yield from ways.items()
    else:
        for way, count in Counter(ways.values()).items():
            yield "matrices", f"{count} {way}"


def _module(description: dict[str, Any]) -> Iterator[Row]:
    recycler = description["recycler"]
    if not recycler:
        yield "module", "none"
        return
    layers, places = recycler.get("num_layers"), recycler.get("places", 1)
    count, part = (layers, "layer") if layers else (places, "place")
    ratio = f" ({description['parameter_ratio']:.1%} of the base)" if description["parameter_ratio"] else ""
    parameters = f"{recycler.get('parameters', 0):,} parameters{ratio}"
    yield "module", f"{count} {part}{'' if count == 1 else 's'}, {parameters}, {_trained(description)}"
    if description["module_trained"]:
        yield "acceptance", _acceptance(recycler)
    known = {name: recycler.get(name) for name in CONVENTIONS}
    known |= {name: recycler[name] for name in OF_HEADS if name in recycler}
    yield "conventions", _text(known if layers else {name: known.get(name) for name in WITHOUT_LAYERS})
    if about := recycler.get("read_from"):
        yield "read from", _read_from(about)
    if size := description.get("draft_vocabulary"):
        yield "draft vocabulary", f"{size:,} tokens"


def _read_from(about: dict[str, Any]) -> str:
    """Say whose format a module was read from, and what was measured of its conventions."""
    line = f"a head in the format {about.get('format')}"
    declared: Any = about.get("declared")
    taken: Any = about.get("taken")
    measured = about.get("measured")
    last = measured[-1] if isinstance(measured, list | tuple) and measured else None
    if not isinstance(last, dict) or not isinstance(rate := last.get("acceptance"), float):
        return f"{line}, conventions not measured"
    both = isinstance(declared, dict) and isinstance(taken, dict)
    changed = [name for name in taken if taken[name] != declared.get(name)] if both else []
    line += f", {rate:.1%} of {last.get('proposals')} proposals right"
    return f"{line}, read against its files: {', '.join(changed)}" if changed else f"{line}, read as declared"


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
