"""A checkpoint that cannot be exported is refused in one line, and no bundle is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODULE, MODULE_CONFIG = f"recycler/{WEIGHTS}", f"recycler/{CONFIG}"

Damage = Callable[[Path], None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, part: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(part * len(data))])

    return damage


def edit(name: str, **values: object) -> Damage:
    """Change values of a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def put(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def both(first: Damage, second: Damage) -> Damage:
    def damage(folder: Path) -> None:
        first(folder)
        second(folder)

    return damage


def change_tensor(name: str, tensor: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    """Replace a tensor; None leaves it out."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        changed = change(tensors.pop(tensor))
        save_file(tensors if changed is None else {**tensors, tensor: changed}, folder / name)

    return damage


def not_a_number(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[3] = np.nan
    return array


def rename_tensors(prefix: str) -> Damage:
    def damage(folder: Path) -> None:
        save_file({f"{prefix}{name}": value for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)

    return damage


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
BASE_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (remove(CONFIG), ("not a checkpoint", "config.json")),
    "config is not JSON": (put(CONFIG, "{"), (CONFIG, "not valid JSON")),
    "config is a list": (put(CONFIG, "[]"), (CONFIG, "JSON object")),
    "another architecture": (edit(CONFIG, model_type="bert"), ("'bert'", "llama", "docs/adding-a-family.md")),
    "no architecture": (edit(CONFIG, model_type=None), ("None", "llama")),
    "a recurrent model": (edit(CONFIG, model_type="mamba2"), ("'mamba2'", "recurrent", "llama")),
    "a mixture of experts": (edit(CONFIG, model_type="mixtral"), ("'mixtral'", "mixture of experts", "mistral")),
    "an unknown RoPE": (edit(CONFIG, rope_scaling={"rope_type": "spiral"}), ("rope_type", "'spiral'", "yarn")),
    "RoPE that is no object": (edit(CONFIG, rope_scaling="yarn"), ("rope_scaling", "'yarn'", "object")),
    "RoPE without a factor": (edit(CONFIG, rope_scaling={"type": "linear"}), ("'linear'", "factor")),
    "an unknown RoPE parameter": (
        edit(CONFIG, rope_parameters={"rope_type": "default", "mrope_section": [1, 2]}),
        ("mrope_section", "[1, 2]"),
    ),
    "biases that are not there": (edit(CONFIG, attention_bias=True), ("q_proj.bias", "missing")),
    "a bias that is no flag": (edit(CONFIG, attention_bias="yes"), ("attention_bias", "'yes'", "true or false")),
    "an unknown activation": (edit(CONFIG, hidden_act="swiglu"), ("hidden_act", "'swiglu'", "silu", "gelu_new")),
    "a field of another family": (edit(CONFIG, attn_logit_softcapping=50.0), ("attn_logit_softcapping", "50.0")),
    "a flag of another family": (
        edit(CONFIG, model_type="mistral", mlp_bias=True),
        ("mlp_bias", "True", "'mistral'"),
    ),
    "layers of another kind": (edit(CONFIG, layer_types=["full_attention", "mamba"]), ("layer_types", "mamba")),
    "an unknown type of layer": (
        edit(CONFIG, model_type="qwen2", layer_types=["full_attention", "chunked_attention"]),
        ("layer_types[1]", "'chunked_attention'", "sliding_attention"),
    ),
    "too few types of layers": (edit(CONFIG, model_type="qwen2", layer_types=["full_attention"]), ("layer_types",)),
    "quantized weights": (
        edit(CONFIG, quantization_config={"quant_method": "gptq"}),
        ("quantization_config", "gptq", "float32"),
    ),
    "no hidden size": (edit(CONFIG, hidden_size=None), ("hidden_size",)),
    "a dimension that is no number": (edit(CONFIG, hidden_size="wide"), (CONFIG, "wide")),
    "2^31 layers": (edit(CONFIG, num_hidden_layers=1 << 31), (CONFIG, "num_hidden_layers", "at most")),
    "1e9 layers": (edit(CONFIG, num_hidden_layers=1e9), (CONFIG, "num_hidden_layers", "at most")),
    "heads of 2^31": (edit(CONFIG, head_dim=1 << 31), (CONFIG, "head_dim", "at most")),
    "2^31 positions": (edit(CONFIG, max_position_embeddings=1 << 31), (CONFIG, "max_position_embeddings", "at most")),
    "2^31 tokens": (edit(CONFIG, vocab_size=1 << 31), (CONFIG, "vocab_size", "at most")),
    "10^400 wide": (edit(CONFIG, hidden_size=10**400), (CONFIG, "hidden_size")),
    "an epsilon of 10^400": (edit(CONFIG, rms_norm_eps=10**400), (CONFIG, "rms_norm_eps")),
    "an endless epsilon": (edit(CONFIG, rms_norm_eps=float("inf")), (CONFIG, "rms_norm_eps")),
    "a scaling that is a list": (edit(CONFIG, rope_scaling={"rope_type": ["yarn"]}), (CONFIG, "rope_type")),
    "a factor of 10^400": (edit(CONFIG, rope_scaling={"type": "linear", "factor": 10**400}), (CONFIG, "linear")),
    "a million heads rotated": (edit(CONFIG, partial_rotary_factor=1e6), (CONFIG, "partial_rotary_factor")),
    "zero layers": (edit(CONFIG, num_hidden_layers=0), ("num_layers is 0",)),
    "zero heads": (edit(CONFIG, num_attention_heads=0, head_dim=None), ("heads", "0")),
    "uneven groups": (edit(CONFIG, num_attention_heads=3, num_key_value_heads=2), ("3 attention heads",)),
    "no vocabulary": (edit(CONFIG, vocab_size=0), ("vocab_size is 0",)),
    "no context": (edit(CONFIG, max_position_embeddings=0), ("context_length is 0",)),
    "a context of one token": (edit(CONFIG, max_position_embeddings=1), ("context_length is 1", "at least 8")),
    "a context of 7 tokens": (edit(CONFIG, max_position_embeddings=7), ("context_length is 7", "at least 8")),
    "config and shapes disagree": (edit(CONFIG, intermediate_size=64), ("gate_proj", "[48, 32]", "[64, 32]")),
    "config wants more layers": (edit(CONFIG, num_hidden_layers=3), ("model.layers.2", "missing")),
    "EOS outside the vocabulary": (edit("generation_config.json", eos_token_id=300), ("eos_token_id", "300")),
    "no weights": (remove(WEIGHTS), (WEIGHTS, "no such file")),
    "truncated header": (truncate(WEIGHTS, 0.001), (WEIGHTS, "damaged")),
    "truncated tensors": (truncate(WEIGHTS, 0.9), (WEIGHTS, "damaged")),
    "not safetensors": (put(WEIGHTS, "PK these are other weights"), (WEIGHTS, "damaged")),
    "a tensor is missing": (change_tensor(WEIGHTS, Q, lambda a: None), (Q, "missing")),
    "a tensor is transposed": (change_tensor(WEIGHTS, NORM, lambda a: a[None].copy()), (NORM, "[1, 32]")),
    "integer weights": (change_tensor(WEIGHTS, NORM, lambda a: a.astype(np.int32)), (NORM, "I32")),
    "NaN": (change_tensor(WEIGHTS, Q, not_a_number), (Q, "not finite")),
    "no tokenizer": (remove("tokenizer.json"), ("tokenizer.json", "no such file")),
    "damaged tokenizer": (put("tokenizer.json", "{}"), ("tokenizer.json", "not a tokenizer")),
    "damaged shard index": (
        both(remove(WEIGHTS), put(f"{WEIGHTS}.index.json", "{}")),
        ("index.json", "weight_map"),
    ),
    "missing shards": (
        both(
            remove(WEIGHTS), put(f"{WEIGHTS}.index.json", json.dumps({"weight_map": {Q: "a.safetensors", NORM: "b"}}))
        ),
        ("a.safetensors", "no such file", "2 of the 2 shards", "fetch"),
    ),
    "a Git LFS pointer for a config": (put(CONFIG, LFS), (CONFIG, "Git LFS pointer", "git lfs pull")),
    "a Git LFS pointer for weights": (put(WEIGHTS, LFS), (WEIGHTS, "Git LFS pointer", "git lfs pull")),
    "a Git LFS pointer for a tokenizer": (put("tokenizer.json", LFS), ("tokenizer.json", "Git LFS pointer")),
    "a compiled model": (rename_tensors("_orig_mod."), ("'_orig_mod.'", "torch.compile")),
    "a wrapped model": (rename_tensors("module."), ("'module.'", "several devices")),
    "a model with an adapter": (rename_tensors("base_model.model."), ("merge_and_unload",)),
    "an adapter": (
        both(remove(WEIGHTS), both(remove(CONFIG), put("adapter_config.json", "{}"))),
        ("an adapter", "LoRA", "merge_and_unload"),
    ),
    "an adapter with its base's config": (
        both(remove(WEIGHTS), put("adapter_config.json", "{}")),
        ("an adapter", "LoRA", "merge_and_unload"),
    ),
    "a torch pickle": (
        both(remove(WEIGHTS), put("pytorch_model.bin", "PK")),
        ("pytorch_model.bin", "pickle", "save_pretrained"),
    ),
}
MODULE_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no module config": (remove(MODULE_CONFIG), (MODULE_CONFIG, "no such file")),
    "no module weights": (remove(MODULE), (MODULE, "no such file")),
    "truncated module": (truncate(MODULE, 0.5), (MODULE, "damaged")),
    "a future module": (edit(MODULE_CONFIG, format="2.0"), (MODULE_CONFIG, "'2.0'", "upgrade")),
    "an unknown tap": (edit(MODULE_CONFIG, tap="layers.3"), ("tap", "'layers.3'", "'final_post'")),
    "an unknown layer": (edit(MODULE_CONFIG, layer="mamba"), ("layer", "'mamba'")),
    "2^31 layers": (edit(MODULE_CONFIG, num_layers=1 << 31), ("num_layers is 2147483648",)),
    "layers in a text": (edit(MODULE_CONFIG, num_layers="1"), ("num_layers is '1'",)),
    "a layer that is a number": (edit(MODULE_CONFIG, layer=7), ("layer is 7",)),
    "a depth in a text": (edit(MODULE_CONFIG, trained_depth="1"), ("trained_depth is '1'",)),
    "training in a list": (edit(MODULE_CONFIG, training=[]), ("training",)),
    "no layers": (edit(MODULE_CONFIG, num_layers=0), ("num_layers is 0",)),
    "more layers than stored": (edit(MODULE_CONFIG, num_layers=2), ("layers.1", "missing")),
    "a base that is no object": (edit(MODULE_CONFIG, base="llama"), (MODULE_CONFIG, "base")),
    "module of another width": (
        change_tensor(MODULE, "projection.weight", lambda a: a[:, :32].copy()),
        ("projection.weight", "[32, 32]", "[32, 64]"),
    ),
    "module with infinities": (change_tensor(MODULE, "norm.weight", lambda a: a * np.inf), ("norm.weight", "finite")),
    "an altered base": (change_tensor(WEIGHTS, NORM, lambda a: 2 * a), ("differ from what this module was made for",)),
    "damaged reference": (put("recycler/reference.safetensors", "x"), ("reference.safetensors", "damaged")),
}


@pytest.mark.parametrize("name", BASE_DAMAGE)
def test_a_damaged_base_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, words = BASE_DAMAGE[name]
    shutil.rmtree(checkpoint / "recycler")
    damage(checkpoint)
    assert_refused(run("export", checkpoint, tmp_path / "bundle"), 2, *words)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", MODULE_DAMAGE)
def test_a_damaged_module_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, words = MODULE_DAMAGE[name]
    damage(checkpoint)
    assert_refused(run("export", checkpoint, tmp_path / "bundle"), 2, *words)
    assert names(tmp_path) == ["model"]


def test_a_head_size_that_kernels_lack_is_refused(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config(head_dim=12))
    assert_refused(run("export", tmp_path / "model", tmp_path / "bundle"), 2, "head_dim is 12", "multiple of 8")
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("verb", ["export", "attach"])
def test_a_missing_checkpoint_is_refused(verb: str, tmp_path: Path) -> None:
    assert_refused(run(verb, tmp_path / "nowhere", tmp_path / "out"), 2, "nowhere", "no such folder")
    (tmp_path / "file").write_text("not a folder")
    assert_refused(run(verb, tmp_path / "file", tmp_path / "out"), 2, "file", "no such folder")
    (tmp_path / "empty").mkdir()
    assert_refused(run(verb, tmp_path / "empty", tmp_path / "out"), 2, "empty", "not a checkpoint")
    assert names(tmp_path) == ["empty", "file"]


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_a_module_has_between_one_and_all_of_the_bases_layers(layers: int, checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(run("attach", checkpoint, tmp_path / "out", "--layers", layers), 2, f"{layers}", "1 to 2")
    assert names(tmp_path) == ["model"]


def test_a_base_elsewhere_that_moved_is_named(checkpoint: Path, tmp_path: Path) -> None:
    assert run("attach", checkpoint, tmp_path / "module", "--reference").exit_code == 0
    checkpoint.rename(tmp_path / "moved")
    assert_refused(run("export", tmp_path / "module", tmp_path / "bundle"), 2, "does not exist", "put it back")


def test_inspecting_something_else_is_refused(tmp_path: Path) -> None:
    assert_refused(run("inspect", tmp_path), 2, "not a checkpoint")
    assert_refused(run("inspect", tmp_path / "nowhere"), 2, "no such folder")
