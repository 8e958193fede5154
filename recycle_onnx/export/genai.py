"""`genai_config.json`, with which onnxruntime-genai runs `model.onnx` as it is."""

from __future__ import annotations

from typing import Any

from recycle_onnx.checkpoint import BaseConfig

CHUNK_SIZE = 256


def genai_config(base: BaseConfig, bos: int | None, eos: list[int]) -> dict[str, Any]:
    """Make the configuration of a decoder whose key-value buffers are shared between past and present."""
    decoder = {
        "session_options": {"log_id": "recycle-onnx", "provider_options": []},
        "filename": "model.onnx",
        "head_size": base.head_dim,
        "hidden_size": base.hidden_size,
        "num_attention_heads": base.num_heads,
        "num_hidden_layers": base.num_layers,
        "num_key_value_heads": base.num_kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "hidden_states": "hidden_states",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    end = eos or [base.vocab_size - 1]
    return {
        "model": {
            "type": base.genai_type,
            "bos_token_id": end[0] if bos is None else bos,
            "eos_token_id": end if len(end) > 1 else end[0],
            "pad_token_id": end[0],
            "context_length": base.context_length,
            "vocab_size": base.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "max_length": base.context_length,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "chunk_size": CHUNK_SIZE,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        },
    }
