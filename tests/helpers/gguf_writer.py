"""A Hugging Face folder to a GGUF file with `gguf`'s own writer and names, changed as llama.cpp's converter does.

benchmarks/peers/write_gguf.py uses it too, in an environment without recycle_onnx.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "granite": gguf.MODEL_ARCH.GRANITE, "olmo2": gguf.MODEL_ARCH.OLMO2,
}  # fmt: skip
OF_LLAMAS_KIND = ("llama", "smollm3", "granite")
"""Those whose converter is llama.cpp's LlamaModel: it reorders the rows of q and k."""
Change = Callable[[gguf.GGUFWriter], None]


def write_gguf(
    path: Path,
    folder: Path,
    kind: str | Callable[[str], str] = "F32",
    pre: str | None = "gpt-2",
    change: Change = lambda _: None,
) -> Path:
    """Write `folder` with its matrices in `kind`, or in the kind of each name; without a tokenizer where `pre` is None.

    `change` may add to or replace what the writer holds.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]])
    _write_config(writer, config)
    if pre is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _write_tokenizer(writer, folder, pre, config["vocab_size"])
    new_name = gguf_names(config)
    for name, value in load_file(folder / "model.safetensors").items():
        changed = _as_llama_cpp(name, value.astype(np.float32), config)
        _add(writer, new_name(name), changed, kind if isinstance(kind, str) else kind(name))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_names(config: dict[str, Any]) -> Callable[[str], str]:
    """What gives llama.cpp's name of a tensor."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], config["num_hidden_layers"])

    def new_name(name: str) -> str:
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        return str(new)

    return new_name


def _as_llama_cpp(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if config["model_type"] in OF_LLAMAS_KIND and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        halves = value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if config["model_type"].startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    return value


def _add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: str) -> None:
    if value.ndim == 1 or kind == "F32":
        writer.add_tensor(name, value)
    elif kind == "F16":
        writer.add_tensor(name, value.astype(np.float16))
    else:
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(value, type_), raw_dtype=type_)


def _write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if original := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(original)
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if config.get(name):
            add(config[name])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, pre: str, size: int) -> None:
    made = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    options = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = {**made["model"]["vocab"], **{token["content"]: token["id"] for token in made["added_tokens"]}}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    special = {token["content"] for token in made["added_tokens"]}
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in made["model"]["merges"]]
    pieces = bool(made["model"].get("byte_fallback"))
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    padding = [f"[PAD{index}]" for index in range(len(tokens), size)]
    writer.add_token_list(tokens + padding)
    types = [_type_of(token, special, pieces) for token in tokens]
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * len(padding))
    if pieces:
        ranks = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_token_scores([ranks.get(token, -1e6) for token in tokens + padding])
        prepends = "Prepend" in json.dumps(made["normalizer"])
        writer.add_add_space_prefix(prepends)
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if token := options.get(f"{name}_token"):
            add(vocab[token])
    writer.add_add_bos_token("TemplateProcessing" in json.dumps(made["post_processor"]))
    if template := options.get("chat_template"):
        writer.add_chat_template(template)


def _type_of(token: str, special: set[str], pieces: bool) -> int:
    if pieces and token == "<unk>":
        return gguf.TokenType.UNKNOWN
    if token in special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if pieces and token.startswith("<0x") else gguf.TokenType.NORMAL
