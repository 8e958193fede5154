"""Adapters that PEFT makes: merged by us, a base has the logits that it has when PEFT merges them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recycle_onnx
from recycle_onnx.export import export
from tests.helpers.command import assert_refused, run
from tests.reference import families

pytest.importorskip("peft", reason="needs peft: pip install peft")
from peft import LoraConfig, get_peft_model

IDS = list(range(20, 36))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TABLES = ["embed_tokens", "lm_head"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "every matrix": ("llama", {"target_modules": ALL}),
    "rank stabilised": ("qwen3", {"target_modules": ALL, "use_rslora": True}),
    "patterns": (
        "smollm3",
        {
            "target_modules": ALL,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "^model.layers.1.mlp.up_proj": 8, r".*\.1\..*v_proj": 3},
            "alpha_pattern": {"k_proj": 3, "layers.1.self_attn.q_proj": 5},
        },
    ),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    "biases of adapted layers": ("llama", {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}),
    "tables and an untied head": ("llama", {"target_modules": ["q_proj", *TABLES]}),
    "a saved head, tied": ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a saved embedding, tied": ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "both saved, tied": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": TABLES}),
    "a saved norm": ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "packed matrices": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "matrices the other way round": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "heads one after the other": ("gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
}


def adapted(name: str, config: dict[str, Any]) -> Any:
    """The model with random factors, none of which is 0."""
    torch.manual_seed(4)
    values = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(deepcopy(families.reference(name)), LoraConfig(**values)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:  # factors, saved modules, and biases where they are trained too
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_pefts_own_merge(case: str, tmp_path: Path) -> None:
    name, config = CASES[case]
    base, model = families.write(name, tmp_path / "base"), adapted(name, config)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        theirs = model.merge_and_unload()(torch.tensor([IDS])).logits[0].numpy()
    result = run("export", base, tmp_path / "bundle", "--adapter", tmp_path / "adapter")
    assert result.exit_code == 0, result.output
    ours, without = logits(tmp_path / "bundle"), logits(export(base, tmp_path / "plain").bundle)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(without - theirs).max() > 0.01 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "modules_to_save"),
    ],
)
def test_what_peft_computes_otherwise_is_refused(config: dict[str, Any], word: str, tmp_path: Path) -> None:
    base, model = families.write("qwen3", tmp_path / "base"), adapted("qwen3", {"target_modules": ["q_proj"], **config})
    model.save_pretrained(tmp_path / "adapter")
    assert_refused(run("export", base, tmp_path / "bundle", "--adapter", tmp_path / "adapter"), 2, word)


def logits(bundle: Path) -> np.ndarray:
    return recycle_onnx.load(bundle, threads=1).decoder("full").full_step(IDS, keep=len(IDS)).copy()
