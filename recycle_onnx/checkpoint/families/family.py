"""What a family states: how its `config.json` becomes a description, and where its files keep the tensors.

Neutral names of tensors are written here without the `model.` that the trunk's have, and with `{}` for the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recycle_onnx.checkpoint.base import Activation, BaseConfig, Layer, Norm, Rope
from recycle_onnx.checkpoint.families.config import Config
from recycle_onnx.checkpoint.families.rope import read_rope
from recycle_onnx.errors import InputError

ATTENTION, MLP = "layers.{}.self_attn", "layers.{}.mlp"
"""Neutral names, of which the families' files have others; the gaps are for the layer's number."""
QUERY, KEY, VALUE, OUTPUT = (f"{ATTENTION}.{part}_proj" for part in "qkvo")
GATE, UP, DOWN = (f"{MLP}.{part}_proj" for part in ("gate", "up", "down"))
BEFORE_ATTENTION, BEFORE_FEED_FORWARD = "layers.{}.input_layernorm", "layers.{}.post_attention_layernorm"
BEHIND_ATTENTION, BEHIND_FEED_FORWARD = "layers.{}.attention_output_norm", "layers.{}.feed_forward_output_norm"

ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function")
"""Where configs name the activation; the first one that is there counts."""
WINDOWS = {"full_attention": False, "sliding_attention": True}
"""Kinds of layers in a config's `layer_types`, and whether they look through the sliding window."""
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names, and ours: several of its names compute the same numbers but for rounding."""


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix (and its bias) of the files that holds several neutral ones, `parts`, one after the other in its rows.

    `transposed`: the file has [in, out]. `by_head`: the parts alternate, a head of each.
    """

    parts: tuple[str, ...]
    transposed: bool = False
    by_head: bool = False


@dataclass(frozen=True)
class Family:
    """A family of models, by the `model_type` in their configs.

    `tensors` names what differs from Llama: a name in the files, and what it is here. `trunk` is what the files put
    before the trunk's names (the first one that fits), `head` their name of the LM head, `genai_type` what
    onnxruntime-genai calls such a model.
    """

    model_types: tuple[str, ...]
    describe: Callable[[Config], BaseConfig]
    tensors: Mapping[str, str | StoredMatrix] = field(default_factory=dict)
    trunk: tuple[str, ...] = ("model.", "")
    head: str = "lm_head"
    genai_type: str = "decoder"


def head_size(config: Config) -> int:
    """Return `head_dim`, or an even share of the hidden size."""
    heads = config.integer("num_attention_heads", "n_head")
    if heads < 1:
        raise InputError(f"{config.path}: num_attention_heads is {heads}; expected at least 1")
    return config.integer("head_dim", default=config.integer("hidden_size", "n_embd") // heads)


def sliding_layers(config: Config) -> list[bool] | None:
    """Return which layers have a sliding window, where `layer_types` says so.

    Raises:
        InputError: a type of layer that is not known.
    """
    kinds = config.listed("layer_types", config.integer("num_hidden_layers"), list(WINDOWS))
    return None if kinds is None else [WINDOWS[kind] for kind in kinds]


def decoder(
    config: Config,
    *,
    rope: tuple[Rope | None, int] | None = None,
    sliding: Sequence[bool] | bool = False,
    scale: float | None = None,
    tied: bool = False,
    activation: str = "silu",
    **description: Any,
) -> BaseConfig:
    """Describe what most configs say in the same words; a family adds or overrides parts of the `description`.

    `rope` and the context that it holds for are read as usual unless given; layers that are `sliding` have the
    config's window; `scale` of the attention scores is 1 / sqrt(head size) unless given; `tied` and `activation` count
    where the config is silent.
    """
    size = head_size(config)
    count, heads = config.integer("num_hidden_layers", "n_layer"), config.integer("num_attention_heads", "n_head")
    rotary, context = rope or read_rope(config, size)
    window = config.integer("sliding_window") if (any(sliding) if isinstance(sliding, Sequence) else sliding) else None
    if window is not None and window < 1:
        raise config.wrong("sliding_window", window, "at least 1")
    pattern = [sliding] * count if isinstance(sliding, bool) else sliding
    scale = size**-0.5 if scale is None else scale
    usual: dict[str, Any] = {
        "model_type": str(config.value("model_type")),
        "hidden_size": config.integer("hidden_size", "n_embd"),
        "num_heads": heads,
        "num_kv_heads": config.integer("num_key_value_heads", default=heads),
        "head_dim": size,
        "vocab_size": config.integer("vocab_size"),
        "context_length": context,
        "tied_embeddings": config.flag("tie_word_embeddings", tied),
        "layers": tuple(Layer(scale, rotary, window if inside else None) for inside in pattern),
        "activation": config.choice(*ACTIVATION_FIELDS, choices=ACTIVATIONS, default=activation),
    }
    if "intermediate_size" not in description:
        usual["intermediate_size"] = config.integer("intermediate_size", "ffn_dim")
    if "norm" not in description:
        usual["norm"] = Norm(config.number("rms_norm_eps"))
    return BaseConfig(**{**usual, **description})
