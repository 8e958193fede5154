"""Architectures: llama.cpp's keys and tensor names to transformers' `config.json` and tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recycle_onnx.checkpoint.sources.gguf.keys import Keys
from recycle_onnx.checkpoint.sources.gguf.rope import rope_scaling
from recycle_onnx.errors import InputError

Config = dict[str, Any]

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""llama.cpp's names of tensors outside the layers, and transformers'."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names within a layer of a plain Llama."""
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
"""Norms of queries and keys, in architectures that have them."""
OLMO2 = {
    **{old: new for old, new in LAYER.items() if old not in ("attn_norm", "ffn_norm")},
    **HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""OLMo 2's norms stand behind both parts of a layer."""
GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Gemma's norms stand before and behind both parts of a layer."""
ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
"""A Llama has biases on all matrices of a part or on none: its config has one field for them."""
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose queries are scaled by the width of a head's share of the hidden state."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    model_type: str
    architecture: str
    layer: Mapping[str, str]
    biases: tuple[str, ...] = ()
    rotated_pairs: bool = False
    """llama.cpp has reordered q and k so that a pair to rotate is two neighbours, not two halves."""
    norm_offset: float = 0.0
    """What llama.cpp added to the norms' weights."""
    more: Callable[[Keys, Config], Config] = field(default=lambda keys, config: {})


def _llama(keys: Keys, config: Config) -> Config:
    names = keys.file.tensors
    has = {stem: f"blk.0.{stem}.bias" in names for stem in ATTENTION + MLP}
    for stems in (ATTENTION, MLP):
        if len({has[stem] for stem in stems}) != 1:
            with_bias = ", ".join(stem for stem in stems if has[stem])
            raise InputError(f"{keys.file.path}: biases on {with_bias} alone; a llama has them on {', '.join(stems)}")
    more: Config = {"attention_bias": has["attn_q"], "mlp_bias": has["ffn_up"], "hidden_act": "silu"}
    if window := keys.get("attention.sliding_window"):
        more |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return more


def _qwen2(keys: Keys, config: Config) -> Config:
    keys.get("attention.sliding_window")  # stated by the converter, used by neither llama.cpp nor the models
    return {"hidden_act": "silu", "use_sliding_window": False}


def _qwen3(keys: Keys, config: Config) -> Config:
    return {**_qwen2(keys, config), "attention_bias": False}


def _smollm3(keys: Keys, config: Config) -> Config:
    """Leave positions out in every fourth layer; llama.cpp has that in its code, and no key says so."""
    return {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "no_rope_layer_interval": 4}


def _granite(keys: Keys, config: Config) -> Config:
    """Read the multipliers, which the converter leaves out where they are 0."""
    multipliers = {
        "attention_multiplier": ("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": ("embedding_scale", 1.0),
        "residual_multiplier": ("residual_scale", 1.0),
        "logits_scaling": ("logit_scale", 1.0),
    }
    read = {name: keys.real(key, default) for name, (key, default) in multipliers.items()}
    return {**read, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def _olmo2(keys: Keys, config: Config) -> Config:
    if keys.get("attention.sliding_window"):
        raise keys.error("attention.sliding_window", "is there: OLMo 3, which is read from a Hugging Face folder only")
    return {"attention_bias": False, "hidden_act": "silu"}


def _gemma(keys: Keys, config: Config, period: int) -> Config:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    largest = layers == LARGEST_GEMMA[keys.architecture]
    window = keys.get("attention.sliding_window")
    pattern = keys.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, list) and len(pattern) < layers:
        raise keys.error("attention.sliding_window_pattern", f"names {len(pattern)} of {layers} layers; damaged")
    if pattern == 0:
        raise keys.error("attention.sliding_window_pattern", "is 0; expected at least 1")
    slides = pattern if isinstance(pattern, list) else [bool((i + 1) % pattern) for i in range(layers)]
    more: Config = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": config["hidden_size"] // heads if largest else config["head_dim"],
        "sliding_window": window,
        "layer_types": ["sliding_attention" if s and window else "full_attention" for s in slides[:layers]],
    }
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        more[name] = keys.real(name) if keys.get(name) else None
    return more


def _gemma2(keys: Keys, config: Config) -> Config:
    return _gemma(keys, config, period=2)


def _gemma3(keys: Keys, config: Config) -> Config:
    return {**_gemma(keys, config, period=6), "rope_local_base_freq": keys.real("rope.freq_base_swa", 10000.0)}


FAMILIES = {
    "llama": Architecture("llama", "LlamaForCausalLM", LAYER, rotated_pairs=True, more=_llama),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", LAYER, biases=("attn_q", "attn_k", "attn_v"), more=_qwen2),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", LAYER | HEAD_NORMS, more=_qwen3),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", LAYER, rotated_pairs=True, more=_smollm3),
    "granite": Architecture("granite", "GraniteForCausalLM", LAYER, rotated_pairs=True, more=_granite),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", OLMO2, more=_olmo2),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", LAYER | GEMMA_NORMS, norm_offset=1.0, more=_gemma2),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", LAYER | HEAD_NORMS | GEMMA_NORMS, norm_offset=1.0, more=_gemma3
    ),
}


def family_of(keys: Keys) -> Architecture:
    """Return the file's architecture.

    Raises:
        InputError: an architecture that is not supported, or one with experts.
    """
    if keys.architecture not in FAMILIES:
        raise InputError(
            f"{keys.file.path}: architecture {keys.architecture!r} is not supported; expected {', '.join(FAMILIES)}"
        )
    if keys.get("expert_count", 0):
        raise keys.error("expert_count", f"is {keys.get('expert_count')}; mixtures of experts are not supported")
    return FAMILIES[keys.architecture]


def config_of(keys: Keys, family: Architecture) -> Config:
    """Make `config.json`, without special tokens and types.

    Raises:
        InputError: a value is missing, or is one that is not supported.
    """
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (size := keys.get(name, head_dim)) != head_dim:
            raise keys.error(name, f"is {size}, and a head has {head_dim}; that is not supported")
    theta = keys.real("rope.freq_base", 10000.0)
    config: Config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": keys.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in keys.file.tensors,
    }
    if scaling := rope_scaling(keys, head_dim, theta):
        config["rope_scaling"] = scaling
    return config | family.more(keys, config)
