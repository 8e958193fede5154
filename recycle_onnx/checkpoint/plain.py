"""The description of a base made from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.families import describe


@dataclass(frozen=True, kw_only=True)
class PlainLlama:
    """The sizes of a Llama without anything special; names are those of `BaseConfig`."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied_embeddings: bool

    def describe(self) -> BaseConfig:
        """Return the description of this base; its `config.json` is its `to_hugging_face()`."""
        raw = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.tied_embeddings,
        }
        return describe(raw, Path("config.json"))[0]
