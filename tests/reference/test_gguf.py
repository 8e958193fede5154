"""Converted GGUF files against transformers: logits, text, tokens, and transformers' own reading of the same file."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.helpers import tiny
from tests.reference.models import SAMPLE, shared_folder

gguf = pytest.importorskip("gguf")
from recycle_onnx.checkpoint.sources.gguf import convert  # noqa: E402
from tests.helpers.gguf_writer import write_gguf  # noqa: E402

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 256, "num_hidden_layers": 7, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 24, "tie_word_embeddings": False}),
    "llama, biases": ("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {"head_dim": 32, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, yarn": ("llama", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": False}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}),
    "granite": ("granite", {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                            "logits_scaling": 5.0, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
    "gemma2": ("gemma2", {"head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", {"head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3, scaled": ("gemma3_text", {"head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 24,
                                       "rope_parameters": {"full_attention": GLOBAL, "sliding_attention": LOCAL}}),
}  # fmt: skip
IDS = torch.arange(1, 101)[None] * 7 % 300


def write_model(folder: Path, name: str) -> transformers.PreTrainedModel:
    """A random model whose norms and biases matter, saved by transformers."""
    kind, changes = CASES[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **SIZES | changes))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if parameter.ndim == 1 else 0.1)
            assert parameter.dtype == torch.float32, key
    tiny.write_base(folder, tiny.tiny_config())  # for its tokenizer
    model.eval().save_pretrained(folder)
    return model


def frequencies(writer: Any) -> None:
    """What llama.cpp's converter adds for Llama 3: the ratio of transformers' own plain and scaled frequencies."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**SIZES | CASES["llama 3"][1])
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


@torch.no_grad()
def logits(folder: Path, **options: Any) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model.eval()(IDS).logits


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_the_model_that_was_written(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", name)
    change = frequencies if name == "llama 3" else lambda _: None
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", change=change)
    (tmp_path / "out").mkdir()
    convert(path, tmp_path / "out")
    with torch.no_grad():
        expected = model(IDS).logits
    torch.testing.assert_close(logits(tmp_path / "out"), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    weights, name = load_file(tmp_path / "out" / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    save_file({**weights, name: np.roll(weights[name], 1, axis=0)}, tmp_path / "out" / "model.safetensors")
    assert (logits(tmp_path / "out") - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_weights_from_the_file(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")  # which transformers wants for this
    write_model(tmp_path / "model", name)
    write_gguf(tmp_path / "model" / "model.gguf", tmp_path / "model", kind)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "model" / "model.gguf", tmp_path / "out")
    # transformers takes the head size of a qwen3 from its defaults and not from the file
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", gguf_file="model.gguf", dtype=torch.float32, config=config
    ).state_dict()
    for key, value in load_file(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_array_equal(theirs[key].numpy(), value)


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_same_greedy_text_as_the_folder(name: str, kind: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", name)
    if kind == "F16":
        round_matrices(tmp_path / "model" / "model.safetensors")
    (tmp_path / "out").mkdir()
    convert(write_gguf(tmp_path / "model.gguf", tmp_path / "model", kind), tmp_path / "out")
    texts = []
    for folder in (tmp_path / "model", tmp_path / "out"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer("the cat sat on the", return_tensors="pt")
        texts.append(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]))
    assert texts[0] == texts[1]
    assert len(texts[0]) > len("the cat sat on the")


def round_matrices(path: Path) -> None:
    """Give the folder the values that float16 can hold, so that the file loses nothing."""
    weights = load_file(path)
    rounded = {name: v.astype(np.float16).astype(np.float32) if v.ndim > 1 else v for name, v in weights.items()}
    save_file(rounded, path, metadata={"format": "pt"})


def lines(count: int = 1000) -> list[str]:
    """Lines of books, stories, verse, code and articles."""
    texts = []
    for name in ("books_train.txt.gz", "tinystories_train_head_2M.txt", "tinyshakespeare.txt", "code_python_train.txt",
                 "wikitext2_valid.txt"):  # fmt: skip
        path = shared_folder("text") / name
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
            texts.append([line.rstrip("\n") for line in islice(file, 20_000) if line.strip()])
    return [line for text in texts for line in text[-count // len(texts) :]]


@pytest.mark.parametrize("name", ["byte level", "pieces"])
def test_tokenizers_agree(name: str, tmp_path: Path) -> None:
    folder = SAMPLE if name == "byte level" else shared_folder("models/stories260K")
    convert(write_gguf(tmp_path / "model.gguf", folder, "F16"), tmp_path)
    ours, theirs = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (tmp_path, folder))
    texts = [*lines(), "  leading and  double spaces ", "naïve café — “quotes” 🦊", "<s>a</s> b", "\ttab", "1234567"]
    assert len(texts) >= 1000
    for text in texts:
        expected = theirs.encode(text)
        assert ours.encode(text).ids == expected.ids, text
        assert ours.decode(expected.ids) == theirs.decode(expected.ids)


def test_pre_tokenizers_are_the_models_own(tmp_path: Path) -> None:
    """Qwen2's, Llama 3's and Mistral's expressions, as transformers has them."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    from recycle_onnx.checkpoint.sources.gguf.pre_tokenizers import SPLITTINGS

    for name, expression in theirs.GGUF_PRE_TOKENIZER_SPLITS.items():
        if name in SPLITTINGS:
            assert SPLITTINGS[name].expressions == (expression,), name


def test_the_chat_template_works(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    convert(write_gguf(tmp_path / "m.gguf", base, change=lambda writer: writer.add_chat_template(template)), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == f"{tiny.END}user: hi\n"
