"""Every family against transformers: graphs and torch model, full model and module, from attach to generate."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import recycle_onnx
from recycle_onnx.bundle import Bundle, graph_file
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, export, quantize_bundle
from recycle_onnx.export.calibrated.folding import Folding, origins
from recycle_onnx.export.calibrated.scales import GraphTensors
from recycle_onnx.export.lazy import load_lazily, weights_of
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.training.options import TrainingOptions
from recycle_onnx.training.storage import load_base
from recycle_onnx.training.trainer import train
from tests.helpers import tiny
from tests.helpers.prompts import story_prompts
from tests.helpers.x86 import x86
from tests.reference.families import CASES, GROUPED, SIZES, reference, write, write_with_module
from tests.reference.models import torch_model

TOLERANCE = 1e-4
LENGTH = 40
SPLITS = ([40], [27, 1, 2, 5, 1, 1, 1, 2], [1, 5, 5, 1, 2, 26])
IDS = np.random.default_rng(3).integers(1, 300, LENGTH).tolist()


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_module(name, tmp_path_factory.mktemp("family") / "model")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    export(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"


@torch.no_grad()
def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and final hidden states of transformers over the whole text."""
    output = reference(name)(torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    return output.logits[0].numpy(), output.hidden_states[-1][0].numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def read(half: Half, ids: list[int], hidden: np.ndarray | None, splits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and hidden states, the text cut into calls."""
    states = np.empty((len(ids), half.spec.hidden_size), np.float32)
    rows, start = [], 0
    for count in splits:
        piece = slice(start, start + count)
        rows.append(half.read(ids[piece], None if hidden is None else hidden[piece], states[piece], keep=count).copy())
        start += count
    assert start == len(ids)
    return np.concatenate(rows), states


@pytest.mark.parametrize("splits", SPLITS, ids=str)
def test_the_graph_gives_what_transformers_gives(name: str, bundle: Path, splits: list[int]) -> None:
    full = recycle_onnx.load(bundle).decoder("full").full
    for found, wanted in zip(read(full, IDS, None, splits), expected(name), strict=True):
        assert difference(found, wanted) < TOLERANCE


def test_the_torch_model_gives_what_transformers_gives(name: str, checkpoint: Path) -> None:
    with torch.no_grad():
        output = torch_model(checkpoint).full(torch.tensor([IDS]))
    for found, wanted in zip(output, expected(name), strict=True):
        assert difference(found[0].numpy(), wanted) < TOLERANCE


def test_the_module_in_the_graph_is_the_module_in_torch(name: str, checkpoint: Path, bundle: Path) -> None:
    check_module(name, checkpoint, bundle)


def check_module(name: str, checkpoint: Path, bundle: Path) -> None:
    hidden = expected(name)[1][:-1]
    with torch.no_grad():
        wanted = torch_model(checkpoint).recycle(torch.tensor([IDS[1:]]), torch.from_numpy(hidden)[None])
    for first, *others in SPLITS:
        module = recycle_onnx.load(bundle).decoder("verify").recycler
        assert module is not None
        splits = [count for count in (first - 1, *others) if count]
        for found, torchs in zip(read(module, IDS[1:], hidden, splits), wanted, strict=True):
            assert difference(found, torchs[0].numpy()) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "qwen3"], scope="module")
def test_a_module_whose_layers_alone_normalise_queries_and_keys(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """Norms of the base's kind, with a bias where the base's have one, which is what torch computes with."""
    attach(checkpoint, tmp_path / "model", NewModule(num_layers=2, qk_norm=True))
    path, generator = tmp_path / "model" / "recycler" / "model.safetensors", np.random.default_rng(2)
    tensors = load_file(path)
    norms = [part for part in tensors if "q_norm" in part or "k_norm" in part]
    assert any(part.endswith("q_norm.bias") for part in norms) == (name != "qwen3")
    noise = {part: 0.3 * generator.standard_normal(tensors[part].shape).astype(np.float32) for part in norms}
    save_file(tensors | {part: tensors[part] + change for part, change in noise.items()}, path)
    export(tmp_path / "model", tmp_path / "bundle")
    check_module(name, tmp_path / "model", tmp_path / "bundle")


def edited(name: str, checkpoint: Path, out: Path, **changes: Any) -> float:
    """How far the graph of a base with another config is from the one that it belongs to."""
    shutil.copytree(checkpoint, out / "model", ignore=shutil.ignore_patterns("recycler"))
    path = out / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    export(out / "model", out / "bundle")
    found = read(recycle_onnx.load(out / "bundle").decoder("full").full, IDS, None, [LENGTH])
    return difference(found[0], expected(name)[0])


@pytest.mark.parametrize("name", ["mistral", "qwen2", "smollm3", "phi3", "gemma2", "gemma3"], scope="module")
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_window_that_is_off_by_one_fails_the_comparison(
    name: str, step: int, checkpoint: Path, tmp_path: Path
) -> None:
    window = json.loads((checkpoint / "config.json").read_text())["sliding_window"]
    found = edited(name, checkpoint, tmp_path, sliding_window=window + step)
    assert (found < TOLERANCE) == (step == 0)


@pytest.mark.parametrize("name", ["llama", "llama, linear", "qwen3", "phi3", "gpt_neox"], scope="module")
def test_unscaled_rotary_positions_fail_the_comparison(name: str, checkpoint: Path, tmp_path: Path) -> None:
    plain = {"rope_type": "default", "rope_theta": 1000.0}
    changes = {"rope_parameters": plain, "partial_rotary_factor": None}
    assert edited(name, checkpoint, tmp_path, **changes) > TOLERANCE


FIRST = {model_type: name for name, (model_type, _) in reversed(CASES.items())}.values()


@pytest.fixture(scope="module", params=sorted(FIRST))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and module that were trained jointly for a few steps."""
    folder = write(request.param, tmp_path_factory.mktemp("trained") / "model")
    attach(folder, folder)
    (folder.parent / "text.txt").write_text(" ".join(story_prompts(60)))
    options = TrainingOptions(steps=3, batch_size=2, sequence_length=24, learning_rate=1e-3, joint=True)
    train(folder, [folder.parent / "text.txt"], options)
    export(folder, folder.parent / "bundle")
    return folder


@torch.no_grad()
def test_transformers_reads_a_base_that_was_trained(trained: Path) -> None:
    ids = torch.tensor([IDS[:24]])
    theirs, loading = AutoModelForCausalLM.from_pretrained(trained, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ours = torch_model(trained).full(ids).logits
    assert difference(theirs.eval()(ids).logits.numpy(), ours.numpy()) < TOLERANCE


def test_verify_gives_the_text_of_full_on_50_prompts(trained: Path) -> None:
    model = recycle_onnx.load(trained.parent / "bundle")
    for prompt in story_prompts(200)[::4]:
        ids = model.encode(prompt)[:12]
        texts = [model.generate(ids, max_new_tokens=12, strategy=strategy).tokens for strategy in ("full", "verify")]
        assert texts[0] == texts[1], prompt


def test_int4_generates(trained: Path) -> None:
    out = trained.parent / "int4"
    _, fidelity = quantize_bundle(trained.parent / "bundle", out, Quantization(bits=4))
    assert fidelity is not None
    assert fidelity.perplexity < 1.5 * fidelity.perplexity_fp32
    for kind in ("full", "recycler"):
        graph = onnx.load(out / graph_file(kind), load_external_data=False).graph
        assert not [node.name for node in graph.node if node.op_type in ("MatMul", "FusedMatMul")]
    assert recycle_onnx.load(out).generate([0, 5, 9], max_new_tokens=8).tokens


@x86
@pytest.mark.parametrize("flavour", ["ort", "standard"])
def test_quantized_runs_of_all_sizes_agree_to_the_bit(flavour: str, checkpoint: Path, tmp_path: Path) -> None:
    """Whatever a family has between attention's rows: windows, caps, norms, layers without positions."""
    done = export(
        checkpoint, tmp_path / "small", ExportOptions(flavour=flavour, quantization=Quantization(8), compare=False)
    )
    assert done.fidelity is not None
    assert done.fidelity.equal_runs
    full = recycle_onnx.load(tmp_path / "small").decoder("full").full
    single = [full.step([token], keep=1)[-1].copy() for token in IDS]
    for start in range(1, LENGTH - 3):
        full.crop(start)
        assert np.array_equal(full.step(IDS[start : start + 3], keep=3), single[start : start + 3])


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gpt_neox"], scope="module")
def test_float16_is_near(name: str, bundle: Path) -> None:
    _, fidelity = quantize_bundle(bundle, bundle.parent / "fp16", HalfPrecision())
    assert fidelity is not None
    assert fidelity.top1_agreement > 0.97


def test_beyond_the_original_context_longrope_is_refused(tmp_path: Path) -> None:
    export(write("phi3", tmp_path / "model"), tmp_path / "bundle")
    with pytest.raises(InputError, match="48"):
        recycle_onnx.load(tmp_path / "bundle").generate(IDS + IDS, max_new_tokens=1)


OLD_AND_NEW: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {**GROUPED, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "yarn": ("qwen2", {**GROUPED, "rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}),
    "longrope, then called su": (
        "phi3",
        {**GROUPED, "rope_theta": 500.0, "original_max_position_embeddings": 48, "sliding_window": 9,
         "rope_scaling": {"type": "su", "original_max_position_embeddings": 48, "long_factor": [2.0] * 8,
                          "short_factor": [1.0 + n / 8 for n in range(8)]}},
    ),
    "a part of the head": ("gpt_neox", {**SIZES, "rotary_pct": 0.5, "rotary_emb_base": 500}),
    "bases by type of layer": (
        "gemma3_text",
        {**GROUPED, "head_dim": 16, "rope_theta": 500.0, "rope_local_base_freq": 50.0, "sliding_window_pattern": 2,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 6, "query_pre_attn_scalar": 20},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD_AND_NEW)
def test_configs_of_older_versions_say_what_transformers_makes_of_them(case: str, tmp_path: Path) -> None:
    model_type, values = OLD_AND_NEW[case]
    old = {"model_type": model_type, **values}
    new = AutoConfig.for_model(model_type, **values).to_dict()
    assert "rope_scaling" in new or "rope_parameters" in new
    newer = describe({k: v for k, v in new.items() if k not in ("rope_scaling", "rope_theta")}, tmp_path)[0]
    older = describe(old | {"tie_word_embeddings": newer.tied_embeddings, "rms_norm_eps": 1e-6}, tmp_path)[0]
    for field in ("layers", "context_length", "activation", "placement", "embedding_scale"):
        assert getattr(older, field) == getattr(newer, field), field


def test_the_text_part_of_a_model_that_sees_images_is_a_base(tmp_path: Path) -> None:
    text = {**CASES["gemma3"][1], "tie_word_embeddings": True}
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "model")
    tiny.write_text_files(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle")
    ids = [token for token in IDS if token < 290]
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    full = recycle_onnx.load(tmp_path / "bundle").decoder("full").full
    assert difference(read(full, ids, None, [len(ids)])[0], wanted) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox"])
def test_sharded_half_precision_files_are_read_as_they_are(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = copy.deepcopy(reference(name)).to(dtype)
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    tiny.write_text_files(tmp_path / "model")
    attach(tmp_path / "model", tmp_path / "model")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        wanted = model(torch.tensor([IDS])).logits[0].numpy()
        found = torch_model(tmp_path / "model").full(torch.tensor([IDS])).logits[0].numpy()
    assert difference(found, wanted) < TOLERANCE


def random_folding(bundle: Path) -> Folding:
    """Factors for all values of a graph that can have them; the model stays the function that it was."""
    model = load_lazily(Bundle.open(bundle).graph("full"), {})
    shapes = {name: weight.shape.numpy() for name, weight in weights_of(model).items()}
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 and "layers" in name]
    random, factors = np.random.default_rng(0), {}
    before = origins(model, matrices)
    for x, names in before.items():
        width = shapes[names[0]][-1]  # of a vector, or of a matrix [K, N] whose rows, its outputs, are divided
        factors[x] = np.exp(random.standard_normal(width)).astype(np.float32)
    return Folding.of(factors, model, before)


@pytest.mark.parametrize("fold", [False, True])
def test_the_tensors_of_a_graph_make_the_model_that_it_is(bundle: Path, *, fold: bool) -> None:
    tensors = GraphTensors(Bundle.open(bundle), random_folding(bundle) if fold else Folding())
    with torch.no_grad():
        logits = load_base(tensors.base, tensors, torch.float32)(torch.tensor([IDS])).logits[0]
    half = recycle_onnx.load(bundle).decoder("full").full
    states = np.empty((LENGTH, half.spec.state_size), np.float32)
    expected = half.read(IDS, None, states, keep=LENGTH)
    np.testing.assert_allclose(logits.numpy(), expected, atol=TOLERANCE * np.abs(expected).max())
