"""A tiny random model of every family, made by transformers: shapes and values that leave nothing at its default."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from recycle_onnx.checkpoint import NewModule, attach
from tests.helpers import tiny

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 24}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.3, 1.6, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
BY_TYPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA = {
    **GROUPED, "head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": 6, "attention_bias": True,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
TIED = {"tie_word_embeddings": True}
BIASES = {"attention_bias": True, "mlp_bias": True}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, **BIASES, "head_dim": 32, "rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {**GROUPED, "rope_parameters": BY_TYPE["full_attention"]}),
    "llama, dynamic": (
        "llama",
        {**GROUPED, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e3, "factor": 4.0}},
    ),
    "mistral": ("mistral", {**GROUPED, "head_dim": 24, "sliding_window": 6}),
    "qwen2": (
        "qwen2",
        {**GROUPED, **TIED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": (
        "qwen3",
        {**GROUPED, **TIED, "head_dim": 32, "attention_bias": True, "rope_parameters": YARN},
    ),
    "smollm3": (
        "smollm3",
        {**GROUPED, **BIASES, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    ),
    "phi3": (
        "phi3",
        {**GROUPED, "partial_rotary_factor": 0.5, "rope_parameters": LONGROPE, "sliding_window": 20,
         "original_max_position_embeddings": 48},
    ),
    "granite": (
        "granite",
        {**GROUPED, **BIASES, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
         "logits_scaling": 5.0, **TIED},
    ),
    "olmo2": ("olmo2", {**GROUPED, "attention_bias": True}),
    "olmo3": (
        "olmo3",
        {**GROUPED, "attention_bias": True, "sliding_window": 6,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}},
    ),
    "ernie4_5": ("ernie4_5", {**GROUPED, "use_bias": True, "head_dim": 24}),
    "exaone4": (
        "exaone4",
        {**GROUPED, "head_dim": 32, "sliding_window": 6,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "exaone4, no window": (
        "exaone4",
        {**GROUPED, **TIED, "sliding_window": None, "layer_types": ["full_attention"] * 3, "rope_parameters": LLAMA3},
    ),
    "hunyuan": (
        "hunyuan_v1_dense",
        {**GROUPED, **TIED, "head_dim": 32, "attention_bias": True,
         "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e3, "factor": 1.0, "alpha": 50.0}},
    ),
    "glm": ("glm", {**GROUPED, "head_dim": 32, "attention_bias": True}),
    "glm4": ("glm4", {**GROUPED, "head_dim": 16, "attention_bias": True}),
    "stablelm": ("stablelm", {**GROUPED, "use_qkv_bias": True, "layer_norm_eps": 1e-3}),
    "helium": ("helium", {**GROUPED, **BIASES, "head_dim": 16}),
    "arcee": ("arcee", {**GROUPED, **BIASES, "head_dim": 32, "rope_parameters": YARN}),
    "seed_oss": ("seed_oss", {**GROUPED, **BIASES, "attention_out_bias": True, "head_dim": 32}),
    "starcoder2": ("starcoder2", {**GROUPED, "sliding_window": 6, "norm_epsilon": 1e-3}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**GEMMA, "rope_parameters": BY_TYPE}),
    "gpt2": (
        "gpt2",
        {"vocab_size": 300, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96, "n_inner": 80,
         "scale_attn_by_inverse_layer_idx": True, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "gpt_neox": ("gpt_neox", {**SIZES, "rotary_pct": 0.5}),
    "gpt_neox, fused": (
        "gpt_neox",
        {**SIZES, "hidden_size": 64, "num_attention_heads": 2, "rotary_pct": 0.5, "use_parallel_residual": False},
    ),
    "opt": (
        "opt",
        {"vocab_size": 300, "hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
    ),
}  # fmt: skip


@cache
def reference(name: str) -> PreTrainedModel:
    """The model, every parameter random: norms around their neutral value, biases around 0."""
    model_type, values = CASES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter += 0.2 * noise
            else:
                parameter.copy_(noise / min(parameter.shape) ** 0.5)
    return model


def write(name: str, folder: Path) -> Path:
    """The model as transformers saves it, with a tokenizer."""
    reference(name).save_pretrained(folder)
    tiny.write_text_files(folder)
    return folder


def write_with_module(name: str, folder: Path) -> Path:
    """The same base, with an untrained module of two layers."""
    write(name, folder)
    attach(folder, folder, NewModule(num_layers=2))
    return folder
