"""Write the vectors with transformers (full model) and torch (module); needs the extra `reference`.

python -m tests.vectors.make_vectors
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaForCausalLM

from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.training.caches import new_cache
from recycle_onnx.training.storage import load_model
from tests.vectors import MODELS, VECTORS, write_model

TOKENS = 40


@torch.no_grad()
def make(name: str, folder: Path) -> None:
    """One prefill of both halves over the same random tokens."""
    write_model(name, folder)
    with Checkpoint.open(folder) as checkpoint:
        model = load_model(checkpoint).eval()
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, model.full.config.vocab_size, TOKENS))
    past = DynamicCache()
    full = base(ids[None], past_key_values=past, output_hidden_states=True)
    hidden = full.hidden_states[-1]
    cache = new_cache(model.full.config, model.recycler.config.num_layers, 1)
    module = model.recycle(ids[None, 1:], hidden[:, :-1], cache)
    vectors = {
        "input_ids": ids,
        "logits": full.logits[0],
        "hidden_states": hidden[0],
        "recycler_logits": module.logits[0],
        "recycler_hidden_states": module.hidden_states[0],
        "key": past.layers[0].keys,
        "recycler_key": cache[0].keys[:, :, : TOKENS - 1],
    }
    save_file({key: value.contiguous() for key, value in vectors.items()}, VECTORS / f"{name}.safetensors")


if __name__ == "__main__":
    for model_name in MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            make(model_name, Path(temporary) / "model")
