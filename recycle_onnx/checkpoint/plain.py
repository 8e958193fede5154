"""The description of a base made from scratch."""

from __future__ import annotations

from pathlib import Path

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families import describe


def plain_llama(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    vocab_size: int,
    context_length: int,
    rms_norm_eps: float = 1e-5,
    rope_theta: float = 10000.0,
    tied_embeddings: bool,
) -> BaseConfig:
    """Describe a Llama of these sizes; its `config.json` is its `to_hugging_face()`."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": context_length,
        "rms_norm_eps": rms_norm_eps,
        "rope_theta": rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied_embeddings,
    }
    return describe(raw, Path("config.json"))[0]
