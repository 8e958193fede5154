"""The model card of a module: what it is, how it was trained, and how good it is."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import Any

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.recycler import RecyclerConfig

COLUMNS = 100
"""Lines of the card are filled to this width, as the project's documents are."""
LAYERS = (
    "{layers} the base's hidden state ({tap}) at p and the embedding of token p+1, and {predict} token p+2 "
    "(RecycleGPT, arXiv 2308.03421)"
)
PLACES = "{count} that {read} the base's hidden state ({tap}) at p, and {predict} (Medusa, arXiv 2401.10774)"
USE = """\
## Use

The base is not in here. Bring your own copy, in whatever precision: a Hugging Face folder, a GGUF
file or a hub id.

    pip install 'recycle-onnx[export,gguf,hub]'
    recycle-onnx attach BASE CHECKPOINT --module FOLDER
    recycle-onnx export CHECKPOINT BUNDLE --precision int8
    recycle-onnx generate BUNDLE "Once upon a time"

`FOLDER` is this folder, or its id on the hub. The text is the base's own; the module makes it come
faster.
"""
RUNS = """\
| run | base | text | steps x windows x tokens | chains of | seconds | held-out loss | accepted by place |
|---|---|---|---|---|---|---|---|"""
NOTES = """
Losses are nats a token of the module against the base's distribution (joint runs: against the
text); a place is accepted where both halves' best tokens agree, greedily, on held-out text of the
same kind.
"""
ELSEWHERE = "It was trained by others, and read from their files.\n"
UNTRAINED = "It was not trained: `recycle-onnx train` does that.\n"
TERMS = "Whatever licence the base and the training text have applies to this module too"


@dataclass(frozen=True)
class Card:
    """The facts that a published module's card tells besides its config: None where one is not known."""

    base: BaseConfig
    parameters: int
    share: float
    dtype: str
    licence: str | None
    base_model: str | None
    base_name: str | None
    trained_on: str | None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        source: dict[str, Any] | None,
        dtype: str,
        licence: str | None,
        base_model: str | None,
    ) -> Card:
        """Gather the facts from a checkpoint with a module; licence and id default to those of the base's source."""
        assert checkpoint.recycler_weights is not None
        came_from = source or {}
        parameters = checkpoint.recycler_weights.num_parameters()
        on_hub = came_from.get("id") if came_from.get("kind") == "hub" else None
        known = base_model or on_hub
        return cls(
            base=checkpoint.base,
            parameters=parameters,
            share=parameters / checkpoint.base_weights.num_parameters(),
            dtype=dtype,
            licence=licence or came_from.get("license"),
            base_model=known,
            base_name=known.rpartition("/")[2] if known else came_from.get("name"),
            trained_on=_copy(came_from),
        )


def _copy(source: dict[str, Any]) -> str | None:
    """Name the copy of the base that the module was trained on, as its source does."""
    if source.get("kind") == "gguf":
        return f"{source.get('file')}, SHA-256 {str(source.get('sha256'))[:12]}…"
    return f"{source['id']} at commit {str(source.get('commit'))[:12]}" if source.get("kind") == "hub" else None


def model_card(config: RecyclerConfig, card: Card | None = None) -> str:
    """Write Markdown from what `recycler/config.json` says; with a `card`, that of a published module for the hub."""
    stated = "`config.json` states every convention, and the base it belongs to"
    about = _paragraph(f"{_reads(config)}. {_tables(config)}. {_made(config)}; {stated}.")
    if card is None:
        terms = f"{TERMS}; `recycle-onnx publish --licence` names it.\n"
        return "\n".join(["# A recyclable module\n", about, _training(config), terms])
    title = f"# A recyclable module for {card.base_name or 'a base of the ' + card.base.model_type + ' family'}\n"
    return "\n".join([_front_matter(card), title, about, _facts(config, card), USE, _measured(config), _licence(card)])


def _reads(config: RecyclerConfig) -> str:
    """Say what it is made of, what it reads and what it predicts."""
    tap = ", ".join(config.tap)
    if config.join is None:
        one = config.places == 1
        predict = "predicts the token p+2" if one else "predict the tokens from p+2 on, one each"
        return PLACES.format(count=config.size, tap=tap, read="reads" if one else "read", predict=predict)
    one = config.num_layers == 1
    layers = "One decoder layer that reads" if one else f"{config.num_layers} decoder layers that read"
    return LAYERS.format(layers=layers, tap=tap, predict="predicts" if one else "predict")


def _tables(config: RecyclerConfig) -> str:
    """Say whose embedding and LM head they are."""
    if config.join is None:
        each = "It" if config.places == 1 else "Each"
        return f"{each} has an LM head of its own" if config.lm_head == "own" else "The LM head is the base's"
    own = [name for name, whose in (("embedding", config.embedding), ("LM head", config.lm_head)) if whose == "own"]
    if not own:
        return "Embedding and LM head are the base's"
    others = "" if len(own) > 1 else f", the {'LM head' if own[0] == 'embedding' else 'embedding'} is the base's"
    return f"It has {' and '.join(f'an {name} of its own' for name in own)}{others}"


def _made(config: RecyclerConfig) -> str:
    """Say where the weights come from."""
    if config.read_from is None:
        return "Made with recycle-onnx"
    return f"Read by recycle-onnx from a head in the format {config.read_from.get('format')}"


def _front_matter(card: Card) -> str:
    """Write what the hub reads, as YAML; a JSON string is one of YAML too."""
    lines = ["---"]
    if card.licence:
        lines.append(f"license: {json.dumps(card.licence)}")
    if card.base_model:
        lines += [f"base_model: {json.dumps(card.base_model)}", "base_model_relation: adapter"]
    tags = ("recycle-onnx", "speculative-decoding", "onnx")
    return "\n".join([*lines, "library_name: recycle-onnx", "pipeline_tag: text-generation", "tags:",
                      *(f"- {tag}" for tag in tags), "---", ""])  # fmt: skip


def _facts(config: RecyclerConfig, card: Card) -> str:
    base = card.base
    draft = f"the {config.draft_vocabulary.size:,} most frequent tokens" if config.draft_vocabulary else "all tokens"
    rows = [
        ("base", card.base_model or card.base_name or "not named by its files"),
        ("its shape", f"{base.model_type}, {base.num_layers} layers of {base.hidden_size}, {base.num_heads} heads "
         f"({base.num_kv_heads} KV) of {base.head_dim}, vocabulary {base.vocab_size:,}"),
        ("module", f"{config.size}, {card.parameters:,} parameters "
         f"({card.share:.1%} of the base's)"),
        ("proposes", draft),
        ("stored as", card.dtype),
    ]  # fmt: skip
    if config.window:
        rows.insert(3, ("looks back", f"the latest {config.window:,} tokens"))
    if card.trained_on:
        rows.insert(2, ("trained on", card.trained_on))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


def _measured(config: RecyclerConfig) -> str:
    untrained = ELSEWHERE if config.read_from else UNTRAINED
    lines = ["## Training\n" if config.training.get("runs") else "## Training\n\n" + untrained]
    if acceptance := config.acceptance:
        lines.append(_paragraph(f"{described(acceptance)} (`verify`, one token at a time)."))
    return "\n".join([*lines, _training(config)]) if config.training.get("runs") else "\n".join(lines)


def described(acceptance: dict[str, Any]) -> str:
    """Say in a phrase what was measured at publishing or at joining."""
    rate, count = acceptance.get("rate"), acceptance.get("proposals")
    known = f"{rate:.1%}" if isinstance(rate, float) else "an unknown part"
    return f"{known} of {count} proposals accepted ({acceptance.get('text')}, {acceptance.get('precision')})"


def _training(config: RecyclerConfig) -> str:
    runs: list[dict[str, Any]] = list(config.training.get("runs", []))
    lines = [RUNS]
    for number, run in enumerate(runs, start=1):
        base = "trained jointly" if run.get("joint") else "frozen"
        own = run.get("regenerate") or run.get("own_tokens")
        text = f"the base's own at {run['temperature']}" if own else "given"
        if count := run.get("text_tokens"):
            text += f", {count:,} tokens"
        size = f"{run['steps']} x {run['batch_size']} x {run['sequence_length']}"
        rates = run["held_out_acceptance"]
        accepted = ", ".join(f"{rate:.1%}" for rate in (rates if isinstance(rates, list | tuple) else [rates]))
        lines.append(
            f"| {number} | {base} | {text} | {size} | {run.get('depth', 1)} | {run['seconds']:.0f} "
            f"| {run['held_out_recycle']:.3f} | {accepted} |"
        )
    return "\n".join([*lines, NOTES])


def _licence(card: Card) -> str:
    if card.licence:
        terms = f"The base's, {card.licence}. {TERMS}."
    else:
        terms = f"Not known: neither the base's files nor whoever published this named it. {TERMS}."
    return f"## Licence\n\n{_paragraph(terms)}"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, COLUMNS, break_long_words=False, break_on_hyphens=False) + "\n"
