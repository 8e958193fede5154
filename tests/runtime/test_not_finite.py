"""Logits that are not finite end what asked for them, in one line that names half, place and likely cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import recycle_onnx
from recycle_onnx.errors import NotFiniteError, RecycleError
from recycle_onnx.evaluation.perplexity import perplexity
from recycle_onnx.export import ExportOptions, HalfPrecision, Quantization, export
from recycle_onnx.runtime.decoding.both_halves import some_text
from recycle_onnx.runtime.model import Model
from tests.helpers import tiny
from tests.helpers.command import assert_refused, run

COLUMN = 3
TOKEN = 65
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def change(folder: Path, name: str, tensor: str, factor: float) -> None:
    tensors = load_file(folder / name)
    save_file({**tensors, tensor: (tensors[tensor] * np.float32(factor))}, folder / name, {"format": "pt"})


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that one token takes beyond float32, after which no logit of it can be trusted."""
    folder = tmp_path_factory.mktemp("overflow")
    base = tiny.write_base(folder / "model", tiny.tiny_config(tied_embeddings=False))
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[COLUMN] = 0
    tensors[EMBEDDING][:, COLUMN] = 0
    tensors[EMBEDDING][TOKEN, COLUMN] = 1e4  # what no other token's hidden state has anything of
    tensors[HEAD][7, COLUMN] = 3e38
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    bundle = export(base, folder / "bundle")
    assert TOKEN not in some_text(bundle.manifest, [0])
    return recycle_onnx.load(folder / "bundle")


SETTINGS = [{}, {"temperature": 0.8}, {"repetition_penalty": 1.2}, {"logprobs": 3}, {"strategy": "lookup"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_nothing_is_chosen_from_them(overflowing: Model, settings: dict[str, float]) -> None:
    generation = overflowing.stream([1, 2, TOKEN], max_new_tokens=4, **settings)
    with pytest.raises(NotFiniteError, match="the full model's logits after token 3 are not finite: the weights"):
        next(generation)
    assert generation.result.finish_reason == "error"
    assert overflowing.generate([1, 2, 4], max_new_tokens=1, **settings).tokens


def test_what_was_read_with_them_is_not_used_again(overflowing: Model) -> None:
    decoder = overflowing.decoder("full")
    decoder.prefill([1, 2, 4])
    with pytest.raises(NotFiniteError, match="after token 5"):
        decoder.full_step([2, TOKEN], keep=2)
    assert decoder.full.tokens == [1, 2, 4]


def test_nothing_is_measured_with_them(overflowing: Model) -> None:
    text = overflowing.tokenizer.decode([TOKEN])
    assert overflowing.encode(text)[-1] == TOKEN
    with pytest.raises(NotFiniteError):
        perplexity(overflowing, [f"a{text}a{text}a"])


def test_the_command_says_so_and_fails(overflowing: Model) -> None:
    text = overflowing.tokenizer.decode([TOKEN])
    result = run("generate", overflowing.bundle.folder, text, "--logprobs", 2, "--json")
    assert_refused(result, 1, "full model", "after token 2", "not finite")


def test_float16_that_overflows_is_not_exported(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "model", tiny.tiny_config())
    change(base, "model.safetensors", "model.layers.0.self_attn.v_proj.weight", 5e4)
    export(base, tmp_path / "fp32")
    for compare in (True, False):
        with pytest.raises(NotFiniteError, match=r"the full model's logits.*float16 ends at 65504"):
            export(base, tmp_path / "fp16", ExportOptions(quantization=HalfPrecision(), compare=compare))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32", "model"]


def test_a_module_that_overflows_is_named(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config())
    change(checkpoint, "recycler/model.safetensors", "norm.weight", 1e38)
    with pytest.raises(NotFiniteError, match="the module's logits after token 1 are not finite"):
        export(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("quantization", [None, Quantization(bits=8), Quantization(bits=4)], ids=str)
def test_weights_that_are_all_zero_are_not_exported(tmp_path: Path, quantization: Quantization | None) -> None:
    base = tiny.write_base(tmp_path / "model", tiny.tiny_config())
    change(base, "model.safetensors", EMBEDDING, 0)
    with pytest.raises(RecycleError, match=r"all logits are 0|not finite"):
        export(base, tmp_path / "bundle", ExportOptions(quantization=quantization, compare=False))
    assert not (tmp_path / "bundle").exists()


def test_an_error_of_a_callers_own_is_told_from_the_end_of_the_text(sample_model: Model) -> None:
    def broken(ids: object, logits: object) -> np.ndarray:
        raise ZeroDivisionError

    generation = sample_model.stream("One day", processors=[broken])
    with pytest.raises(ZeroDivisionError):
        next(generation)
    assert generation.result.finish_reason == "error"
    assert list(generation) == []


def test_a_generation_of_a_closed_model_ended_with_an_error_unless_it_was_over(sample_bundle: Path) -> None:
    with recycle_onnx.load(sample_bundle) as model:
        over, going = model.stream("One day", max_new_tokens=1), model.stream("One day", max_new_tokens=9)
        list(over)
        next(going)
    for generation in (over, going):
        with pytest.raises(RecycleError, match="closed"):
            next(generation)
    assert (over.result.finish_reason, going.result.finish_reason) == ("length", "error")
