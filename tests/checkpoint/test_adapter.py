"""LoRA adapters merged into a base, in the layout that PEFT saves (peft 0.21: tuners/lora/layer.py, utils/other.py).

What is expected is computed here in numpy as PEFT's `get_delta_weight` has it; tests/reference asks PEFT itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
TABLE, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def write_adapter(
    folder: Path, base: Path, modules: dict[str, int] | None = None, saved: Tensors | None = None, **config: Any
) -> Path:
    """Random factors of the ranks that `modules` names, and tensors that take the place of the base's."""
    folder.mkdir()
    modules = {QUERY: 4, DOWN: 4} if modules is None else modules
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**usual, "base_model_name_or_path": "org/name", **config}))
    generator, shapes = np.random.default_rng(3), {name: value.shape for name, value in weights(base).items()}
    tensors = {f"{PREFIX}{name}": value for name, value in (saved or {}).items()}
    for module, rank in modules.items():
        rows, columns = shapes[f"{module}.weight"]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = generator.normal(0, 0.3, (rank, columns)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = generator.normal(0, 0.3, (rows, rank)).astype(np.float32)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def weights(folder: Path) -> Tensors:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.base_weights.float32(name) for name in checkpoint.base_weights.shapes}


def product(adapter: Path, module: str) -> np.ndarray:
    tensors = load_file(adapter / "adapter_model.safetensors")
    return tensors[f"{PREFIX}{module}.lora_B.weight"] @ tensors[f"{PREFIX}{module}.lora_A.weight"]


def attached(base: Path, adapter: Path, out: Path, *options: str) -> Tensors:
    result = run("attach", base, out, "--adapter", adapter, *options)
    assert result.exit_code == 0, result.output
    return weights(out)


def logits(bundle: Path) -> np.ndarray:
    return recycle_onnx.load(bundle, threads=1).decoder("full").full_step(list(range(20, 36)), keep=16).copy()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base", tiny.tiny_config())


@pytest.mark.parametrize("options", [(), ("--reference",)], ids=["copied", "referred"])
def test_products_of_low_rank_are_added_to_the_modules_that_have_them(
    options: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base)
    merged, before = attached(base, adapter, tmp_path / "out", *options), weights(base)
    for name, value in before.items():
        module = name.removesuffix(".weight")
        added = 6 / 4 * product(adapter, module) if module in (QUERY, DOWN) else 0
        np.testing.assert_allclose(merged[name], value + added, atol=1e-6)
    assert (tmp_path / "out" / "weights.json").exists() == bool(options)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"use_rslora": True}, (6 / 4**0.5, 6 / 4**0.5)),
        ({"alpha_pattern": {"q_proj": 10}}, (10 / 4, 6 / 4)),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 3, r".*\.\d+\..*_proj": 2}}, (2 / 4, 3 / 4)),
        ({"alpha_pattern": {"proj": 10, "^layers.1.mlp.down_proj": 3}}, (6 / 4, 6 / 4)),
        ({"r": 7, "rank_pattern": {"q_proj": 4, "down_proj": 4}}, (6 / 4, 6 / 4)),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "layers_to_transform": [0, 1]}, (6 / 4, 6 / 4)),
    ],
)
def test_ranks_and_alphas_are_those_of_the_first_pattern_that_fits(
    config: dict[str, Any], scales: tuple[float, float], base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, **config)
    merged, before = attached(base, adapter, tmp_path / "out"), weights(base)
    for module, scale in zip((QUERY, DOWN), scales, strict=True):
        expected = before[f"{module}.weight"] + scale * product(adapter, module)
        np.testing.assert_allclose(merged[f"{module}.weight"], expected, atol=1e-6)


def test_an_export_merges_as_attach_does_and_leaves_the_base_as_it_was(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base)
    digest = (base / "model.safetensors").read_bytes()
    attached(base, adapter, tmp_path / "out")
    assert run("export", tmp_path / "out", tmp_path / "first").exit_code == 0
    assert run("export", base, tmp_path / "second", "--adapter", adapter).exit_code == 0
    assert run("export", base, tmp_path / "plain").exit_code == 0
    np.testing.assert_allclose(logits(tmp_path / "first"), logits(tmp_path / "second"), atol=1e-6)
    assert np.abs(logits(tmp_path / "plain") - logits(tmp_path / "first")).max() > 0.1
    assert (base / "model.safetensors").read_bytes() == digest
    source = json.loads((tmp_path / "second" / "source.json").read_text())
    assert source["adapter"]["name"] == "adapter"
    assert source["adapter"]["base"] == "org/name"


@pytest.mark.parametrize(
    ("named", "recorded"),
    [("org/name", "org/name"), ("/home/me/models/base", "base"), ("C:\\models\\base\\", "base"), ("", None), (3, "3")],
)
def test_what_is_recorded_names_no_path(named: object, recorded: str | None, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, base_model_name_or_path=named)
    attached(base, adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "source.json").read_text())["adapter"]["base"] == recorded


def test_a_half_precision_base_is_merged_without_rounding(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config(), dtype="bfloat16")
    adapter = write_adapter(tmp_path / "adapter", base)
    merged, before = attached(base, adapter, tmp_path / "out"), weights(base)
    expected = before[f"{QUERY}.weight"] + 6 / 4 * product(adapter, QUERY)
    np.testing.assert_allclose(merged[f"{QUERY}.weight"], expected, atol=1e-6)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored[f"{QUERY}.weight"].dtype.name == "float32"
    assert stored[NORM].dtype.name == "bfloat16"


@pytest.mark.parametrize("which", [{TABLE}, {HEAD}, {TABLE, HEAD}], ids=["embedding", "head", "both"])
def test_saved_tables_untie_a_tied_base(which: set[str], base: Path, tmp_path: Path) -> None:
    before, generator = weights(base), np.random.default_rng(1)
    saved = {name: generator.normal(0, 1, before[TABLE].shape).astype(np.float32) for name in sorted(which)}
    adapter = write_adapter(tmp_path / "adapter", base, saved=saved, modules_to_save=["embed_tokens", "lm_head"])
    merged = attached(base, adapter, tmp_path / "out")
    for name in (TABLE, HEAD):
        np.testing.assert_array_equal(merged[name], saved.get(name, before[TABLE]))


def test_saved_modules_and_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    norm = np.linspace(0.5, 1.5, 32, dtype=np.float32)
    adapter = write_adapter(tmp_path / "adapter", base, saved={NORM: norm}, modules_to_save=["norm"])
    np.testing.assert_array_equal(attached(base, adapter, tmp_path / "out")[NORM], norm)


def test_a_module_goes_on_with_an_adapted_base(base: Path, tmp_path: Path) -> None:
    assert run("attach", base, tmp_path / "checkpoint").exit_code == 0
    adapter = write_adapter(tmp_path / "adapter", base)
    refused = run("export", tmp_path / "checkpoint", tmp_path / "bundle", "--adapter", adapter)
    assert_refused(refused, 2, "has a module", "recycle-onnx attach BASE OUT --module", "--adapter")
    joined = run("attach", base, tmp_path / "out", "--module", tmp_path / "checkpoint", "--adapter", adapter)
    assert joined.exit_code == 0, joined.output
    assert run("export", tmp_path / "out", tmp_path / "bundle").exit_code == 0


def test_an_adapter_that_changed_since_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base)
    attached(base, adapter, tmp_path / "out", "--reference")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    assert_refused(run("export", tmp_path / "out", tmp_path / "bundle"), 2, "weights differ")
    adapter.rename(tmp_path / "elsewhere")
    assert_refused(run("export", tmp_path / "out", tmp_path / "bundle"), 2, "does not exist", "adapter")


def test_a_gguf_file_is_merged_under_the_names_of_transformers(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.helpers.gguf_writer import write_gguf

    file, adapter = write_gguf(tmp_path / "model.gguf", base), write_adapter(tmp_path / "adapter", base)
    for options in ((), ("--reference",)):
        merged = attached(file, adapter, tmp_path / f"out{len(options)}", *options)
        expected = weights(base)[f"{QUERY}.weight"] + 6 / 4 * product(adapter, QUERY)
        np.testing.assert_allclose(merged[f"{QUERY}.weight"], expected, atol=1e-6)


def test_run_keeps_a_bundle_of_each_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))
    adapter = write_adapter(tmp_path / "adapter", base)

    def exported(*options: object) -> tuple[str, bool]:
        result = run("run", base, "--prompt", "the cat", "-n", 2, "--threads", 1, "--json", *options)
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        return answer["bundle"], answer["exported"]

    plain, first = exported(), exported("--adapter", adapter)
    assert plain[0] != first[0]
    assert exported("--adapter", adapter) == (first[0], False)


def edit(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


def change(edited: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(edited(load_file(path)), path)

    return damage


def rename(old: str, new: str) -> Callable[[Path], None]:
    return change(lambda tensors: {name.replace(old, new): value for name, value in tensors.items()})


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


A, B = f"{PREFIX}{QUERY}.lora_A.weight", f"{PREFIX}{QUERY}.lora_B.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "another method": (edit(peft_type="IA3"), ("peft_type", "'IA3'", "LORA")),
    "DoRA": (edit(use_dora=True), ("use_dora", "merge_and_unload")),
    "PiSSA": (edit(init_lora_weights="pissa"), ("init_lora_weights", "'pissa'")),
    "single tokens": (edit(trainable_token_indices=[1]), ("trainable_token_indices", "[1]")),
    "parameters of experts": (edit(target_parameters=["experts"]), ("target_parameters",)),
    "replicated layers": (edit(layer_replication=[[0, 2]]), ("layer_replication",)),
    "a later method": (edit(use_qalora=True), ("use_qalora",)),
    "no alpha": (edit(lora_alpha=None), ("lora_alpha", "a number above 0")),
    "a rank that is no number": (edit(r="4"), ("r '4'",)),
    "another rank": (edit(r=5), ("[4, 32]", "rank of 5")),
    "patterns in a list": (edit(alpha_pattern=["q_proj"]), ("alpha_pattern", "an object")),
    "a pattern that takes years": (edit(alpha_pattern={"(a+)+": 1}), ("pattern", "'(a+)+'")),
    "half a pattern": (edit(rank_pattern={"(q": 1}), ("pattern", "regular expression")),
    "a pickle": (pickled, ("adapter_model.bin", "pickle", "adapter_model.safetensors")),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), ("no such file",)),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), ("not an adapter", "adapter_config.json")),
    "no tensors": (change(lambda tensors: {}), ("holds no tensors",)),
    "half a product": (change(lambda tensors: {k: v for k, v in tensors.items() if k != B}), (B, "missing")),
    "the other half": (change(lambda tensors: {k: v for k, v in tensors.items() if k != A}), (A, "missing")),
    "magnitudes": (
        change(lambda tensors: {**tensors, f"{PREFIX}{QUERY}.lora_magnitude_vector": np.ones(32, np.float32)}),
        ("lora_magnitude_vector", "not known"),
    ),
    "NaN": (change(lambda tensors: {**tensors, A: tensors[A] * np.float32(np.nan)}), ("not finite",)),
    "a deeper base": (rename("layers.1.", "layers.9."), ("layers.9.mlp.down_proj", "lacks", "for another base (org/")),
    "a wider base": (
        change(lambda tensors: {**tensors, A: np.ones((4, 64), np.float32)}),
        ("[32, 64]", "[32, 32]", "another base"),
    ),
    "a layer that the family lacks": (rename("q_proj", "query"), ("self_attn.query.weight", "lacks")),
    "a tied table": (rename(QUERY, "lm_head"), ("lm_head.weight", "modules_to_save")),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("verb", ["export", "attach"])
def test_what_cannot_be_merged_is_refused(verb: str, name: str, base: Path, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    adapter = write_adapter(tmp_path / "adapter", base)
    damage(adapter)
    assert_refused(run(verb, base, tmp_path / "out", "--adapter", adapter), 2, *words)
    assert names(tmp_path) == ["adapter", "base"]


def test_a_name_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    assert_refused(run("export", base, tmp_path / "out", "--adapter", tmp_path / "nowhere"), 2, "nowhere", "no such")
    assert_refused(run("export", base, tmp_path / "out", "--adapter", base), 2, "not an adapter")
    adapter = write_adapter(tmp_path / "adapter", base)
    kept = run("attach", base, adapter, "--adapter", adapter, "--force")
    assert_refused(kept, 2, "holds", "another name")
    assert names(tmp_path) == ["adapter", "base"]
