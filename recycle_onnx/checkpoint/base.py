"""What a base model is: its dimensions, and the tensors it must consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json

SUPPORTED_MODEL_TYPES = ("llama",)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class BaseConfig:
    """Dimensions of a LLaMA-type decoder, as its `config.json` states them."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    tied_embeddings: bool

    @classmethod
    def read(cls, path: Path) -> BaseConfig:
        """Read `config.json`.

        Raises:
            InputError: the architecture is not supported, or a value is missing or contradictory.
        """
        raw = read_json(path)
        _refuse_unsupported(raw, path)
        try:
            heads = int(raw["num_attention_heads"])
            if heads < 1:
                raise InputError(f"{path}: num_attention_heads is {heads}; expected at least 1")
            config = cls(
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // heads),
                vocab_size=int(raw["vocab_size"]),
                context_length=int(raw["max_position_embeddings"]),
                rms_norm_eps=float(raw["rms_norm_eps"]),
                rope_theta=_rope_theta(raw),
                tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise InputError(f"{path}: no value for {error.args[0]!r}, which a llama config must have") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: a dimension is not a number ({error})") from error
        config._check(path)
        return config

    def _check(self, path: Path) -> None:
        for name in (
            "hidden_size", "intermediate_size", "num_layers", "num_kv_heads", "head_dim", "vocab_size",
            "context_length",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{path}: {name} is {getattr(self, name)}; expected at least 1")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{path}: {self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise InputError(f"{path}: head_dim is {self.head_dim}; rotary embeddings need an even one")

    def layer_shapes(self, prefix: str) -> Shapes:
        """Names and shapes of one decoder layer's tensors, linear weights as [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}self_attn.k_proj.weight": (keys, hidden),
            f"{prefix}self_attn.v_proj.weight": (keys, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }

    def tensor_shapes(self) -> Shapes:
        """Names and shapes of every tensor of the base."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for index in range(self.num_layers):
            shapes |= self.layer_shapes(f"model.layers.{index}.")
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def to_hugging_face(self, **special_tokens: int) -> dict[str, Any]:
        """The `config.json` that transformers reads."""
        return {
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
            **special_tokens,
        }


def _refuse_unsupported(raw: Mapping[str, Any], path: Path) -> None:
    kind = raw.get("model_type")
    if kind not in SUPPORTED_MODEL_TYPES:
        raise InputError(f"{path}: model_type {kind!r} is not supported; supported: {', '.join(SUPPORTED_MODEL_TYPES)}")
    scaling = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope != "default":
        raise InputError(f"{path}: RoPE scaling {rope!r} is not supported yet; expected unscaled rotary embeddings")
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise InputError(f"{path}: hidden_act {activation!r} is not supported; expected 'silu'")
    for name in ("attention_bias", "mlp_bias"):
        if raw.get(name):
            raise InputError(f"{path}: {name} is true; linear layers with a bias are not supported yet")


def _rope_theta(raw: Mapping[str, Any]) -> float:
    parameters = raw.get("rope_parameters") or {}
    return float(raw.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
