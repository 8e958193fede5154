"""Greedy decoding with optimum-onnx's ORTModelForCausalLM, for its environment of `make test-peers`.

python optimum_onnx_generate.py < requests.json > answers.json

A request is {"bundle": folder, "prompts": [text], "new_tokens": count, "use_io_binding": bool, "set_sizes": bool}. Its
answer is [{"prompt": ids, "tokens": new ids}], or {"error": text}. With `set_sizes` the model is told its number of
key-value heads and their size, which for many model types it guesses from other fields.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def load(request: dict[str, Any]) -> Any:
    model = ORTModelForCausalLM.from_pretrained(request["bundle"], use_io_binding=request["use_io_binding"])
    if request["set_sizes"]:
        manifest = json.loads(Path(request["bundle"], "recycle.json").read_text(encoding="utf-8"))
        model.num_key_value_heads = manifest["graphs"]["full"]["num_kv_heads"]
        model.embed_size_per_head = manifest["graphs"]["full"]["head_dim"]
    return model


def generate(model: Any, tokenizer: Any, text: str, new_tokens: int) -> dict[str, list[int]]:
    prompt = tokenizer(text, return_tensors="pt")
    inputs = {"attention_mask": prompt.attention_mask, "max_new_tokens": new_tokens, "do_sample": False}
    ids = model.generate(prompt.input_ids, pad_token_id=0, **inputs)[0].tolist()
    length = prompt.input_ids.shape[1]
    return {"prompt": ids[:length], "tokens": ids[length:]}


def answer(request: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(request["bundle"])
    try:
        model = load(request)
        return [generate(model, tokenizer, text, request["new_tokens"]) for text in request["prompts"]]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
