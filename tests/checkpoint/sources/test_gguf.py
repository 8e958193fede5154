"""GGUF files become the Hugging Face folders they were made from."""

from __future__ import annotations

import importlib
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import recycle_onnx
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.checkpoint.families import read_config
from recycle_onnx.export import export
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run

gguf = pytest.importorskip("gguf")
from recycle_onnx.checkpoint.sources.gguf import convert  # noqa: E402
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile  # noqa: E402
from recycle_onnx.checkpoint.sources.gguf.rope import llama3_divisors  # noqa: E402
from tests.helpers.gguf_writer import write_gguf  # noqa: E402

CONFIG = tiny.tiny_config(intermediate_size=64, num_heads=4, num_kv_heads=2)
Q, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base") / "base", CONFIG)


def converted(base: Path, tmp_path: Path, kind: str = "F32", **options: object) -> Path:
    folder = tmp_path / f"from-{kind}"
    folder.mkdir()
    convert(write_gguf(tmp_path / f"model.{kind}.gguf", base, kind, **options), folder)  # type: ignore[arg-type]
    return folder


def test_float32_comes_back_bit_for_bit(base: Path, tmp_path: Path) -> None:
    folder = converted(base, tmp_path)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    assert read_config(folder / "config.json")[0] == CONFIG


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_half_precision_keeps_its_type(base: Path, tmp_path: Path, kind: str, dtype: str) -> None:
    folder = converted(base, tmp_path, kind)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    for name in (Q, UP):
        assert ours[name].dtype == dtype
        np.testing.assert_array_equal(ours[name], theirs[name].astype(dtype))
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_equal_their_dequantization(base: Path, tmp_path: Path, kind: str) -> None:
    ours = load_file(converted(base, tmp_path, kind) / "model.safetensors")
    theirs = load_file(base / "model.safetensors")
    type_ = gguf.GGMLQuantizationType[kind]
    for name in (Q, UP):
        expected = gguf.quants.dequantize(gguf.quants.quantize(theirs[name], type_), type_)
        assert not np.array_equal(expected, theirs[name])
        np.testing.assert_array_equal(ours[name], expected)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_k_quants_equal_their_dequantization(tmp_path: Path, kind: str) -> None:
    config = tiny.tiny_config(hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, num_layers=1)
    type_ = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[type_]
    generator = np.random.default_rng(5)
    blocks = generator.integers(0, 255, (config.intermediate_size, size), dtype=np.uint8)
    scales = generator.integers(0, 64, blocks.shape, dtype=np.uint8)  # as float16: all finite
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(gguf.quants.dequantize(blocks, type_)).all(axis=1, keepdims=True)
    blocks = np.where(finite, blocks, scales)

    def replace(writer: gguf.GGUFWriter) -> None:
        del writer.tensors[0]["blk.0.ffn_up.weight"]
        writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=type_)

    base = tiny.write_base(tmp_path / "base", config)
    ours = load_file(converted(base, tmp_path, change=replace) / "model.safetensors")
    np.testing.assert_array_equal(ours[UP], gguf.quants.dequantize(blocks, type_))


def test_the_same_greedy_text_as_the_folder(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", base)
    assert run("attach", path, tmp_path / "checkpoint").exit_code == 0
    export(base, tmp_path / "a")
    export(tmp_path / "checkpoint", tmp_path / "b")
    first, second = recycle_onnx.load(tmp_path / "a"), recycle_onnx.load(tmp_path / "b")
    for prompt in ("the cat", "a hen ran", "z"):
        expected = first.generate(prompt, max_new_tokens=40, strategy="full").tokens
        assert second.generate(prompt, max_new_tokens=40, strategy="full").tokens == expected
        assert second.generate(prompt, max_new_tokens=40, strategy="verify").tokens == expected


def test_the_tokenizer_and_its_template_come_along(base: Path, tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    folder = converted(base, tmp_path, change=lambda writer: writer.add_chat_template(template))
    ours, theirs = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (folder, base))
    for text in ("the cat sat", "Zürich 1234  tabs\tand\n\nlines", f"a{tiny.END}b", "don't"):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == template
    assert config["bos_token"] == config["eos_token"] == tiny.END
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 0}


def test_the_end_of_a_turn_ends_a_text(base: Path, tmp_path: Path) -> None:
    folder = converted(base, tmp_path, change=lambda writer: writer.add_eot_token_id(7))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 7]


def test_llama_3s_scaling_is_found_from_its_frequencies(base: Path, tmp_path: Path) -> None:
    divisors = llama3_divisors(CONFIG.head_dim, CONFIG.raw["rope_theta"], 8.0, 32).astype(np.float32)
    assert len(set(divisors.tolist())) > 2
    folder = converted(base, tmp_path, change=lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip


def test_a_key_that_was_not_used_is_named(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", base, change=lambda writer: writer.add_uint32("llama.novelty", 3))
    result = run("attach", path, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert notes == ["note: model.gguf: keys that were not used: novelty"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    config = tiny.tiny_config(hidden_size=256, intermediate_size=1 << 15, num_layers=1)
    path = write_gguf(tmp_path / "large.gguf", tiny.write_base(tmp_path / "base", config), "Q8_0")
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    convert(path, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_tensor = 4 * config.intermediate_size * config.hidden_size
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 3 * one_tensor
    assert peak < 0.75 * one_tensor


@pytest.mark.parametrize("spelling", ["{}", "--from-gguf {}", "--from-gguf={}"])
@pytest.mark.parametrize("verb", ["attach", "export"])
def test_a_file_may_stand_in_two_places(base: Path, tmp_path: Path, verb: str, spelling: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", base, "Q8_0")
    result = run(verb, *spelling.format(path).split(), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: model.gguf is quantized (Q8_0)" in result.stderr
    assert names(tmp_path) == ["model.gguf", "out"]
    found = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert found["source"]["tensor_types"] == {"F32": 5, "Q8_0": 15}
    assert found["source"]["file"] == "model.gguf"
    assert "sha256 " in run("inspect", tmp_path / "out").stdout
    if verb == "export":
        assert found["provenance"]["checkpoint"] == "model"


def test_the_attached_checkpoint_needs_the_file_no_more(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", base)
    assert run("attach", path, tmp_path / "out").exit_code == 0
    path.unlink()
    with Checkpoint.open(tmp_path / "out") as checkpoint:
        assert checkpoint.recycler is not None
        np.testing.assert_array_equal(checkpoint.base_weights.stored(Q), load_file(base / "model.safetensors")[Q])


def drop(*tensors: str) -> object:
    def change(writer: gguf.GGUFWriter) -> None:
        for tensor in tensors:
            del writer.tensors[0][tensor]

    return change


def value(name: str, new: object) -> object:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(name, None)
        if isinstance(new, str):
            writer.add_string(name, new)
        elif isinstance(new, list):
            writer.add_array(name, new)
        elif new is not None:
            writer.add_uint32(name, new)  # type: ignore[arg-type]

    return change


def integers(writer: gguf.GGUFWriter) -> None:
    del writer.tensors[0]["blk.0.ffn_up.weight"]
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 32), dtype=np.int8))


REFUSED = {
    "architecture": (value("general.architecture", "mamba"), ("'mamba'", "llama, qwen2")),
    "experts": (value("llama.expert_count", 8), ("expert_count is 8", "mixtures of experts")),
    "tokenizer": (value("tokenizer.ggml.model", "t5"), ("'t5'", "gpt2 or llama")),
    "pre-tokenizer": (value("tokenizer.ggml.pre", "klingon"), ("'klingon'", "smollm")),
    "no merges": (value("tokenizer.ggml.merges", None), ("merges",)),
    "other tokens": (value("tokenizer.ggml.tokens", ["a", "b"]), ("token_type", "damaged")),
    "one part": (value("split.count", 3), ("one of 3 parts", "--merge")),
    "no layers": (value("llama.block_count", None), ("llama.block_count is None",)),
    "layers that differ": (value("llama.attention.head_count_kv", [1, 2]), ("head_count_kv", "layer to layer")),
    "part of a head": (value("llama.rope.dimension_count", 8), ("rope.dimension_count is 8", "16")),
    "scaling": (value("llama.rope.scaling.type", "longrope"), ("'longrope'", "yarn")),
    "missing tensor": (drop("blk.1.attn_q.weight"), ("blk.1.attn_q.weight", "missing")),
    "more layers": (value("llama.block_count", 1), ("blk.1", "not known in a llama")),
    "more heads": (value("llama.attention.head_count", 8), ("attn_q.weight has 64 rows", "8 heads")),
    "integers": (integers, ("I8", "not supported", "Q8_0")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    path = write_gguf(tmp_path / "model.gguf", base, change=change)  # type: ignore[arg-type]
    assert_refused(run("attach", path, tmp_path / "out"), 2, "model.gguf", *words)
    assert names(tmp_path) == ["model.gguf"]


def key(name: str, kind: str, new: object) -> object:
    """A value of any kind in place of what is there: nothing that the writer's own methods would check."""

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(name, None)
        if kind == "ARRAY":
            writer.add_array(name, new)  # type: ignore[arg-type]
        else:
            writer.add_key_value(name, new, gguf.GGUFValueType[kind])

    return change


HOSTILE = {
    "negative alignment": key("general.alignment", "INT32", -32),
    "no alignment": key("general.alignment", "UINT32", 0),
    "odd alignment": key("general.alignment", "UINT32", 48),
    "alignment in a text": key("general.alignment", "STRING", "32"),
    "a million layers": key("llama.block_count", "UINT32", 1 << 20),
    "more layers than tensors": key("llama.block_count", "UINT32", 2000),
    "2^31 layers": key("llama.block_count", "UINT64", 1 << 31),
    "layers in a text": key("llama.block_count", "STRING", "2"),
    "yes layers": key("llama.block_count", "BOOL", True),
    "2^31 heads": key("llama.attention.head_count", "UINT64", 1 << 31),
    "heads of one value": key("llama.attention.key_length", "UINT32", 1),
    "large heads": key("llama.attention.key_length", "UINT32", 1 << 30),
    "wide": key("llama.embedding_length", "UINT64", 1 << 40),
    "another width": key("llama.embedding_length", "UINT32", 64),
    "another feed-forward": key("llama.feed_forward_length", "UINT32", 72),
    "2^31 positions": key("llama.context_length", "UINT64", 1 << 31),
    "an epsilon in a text": key("llama.attention.layer_norm_rms_epsilon", "STRING", "1e-5"),
    "an endless epsilon": key("llama.attention.layer_norm_rms_epsilon", "FLOAT64", float("inf")),
    "a base that is no number": key("llama.rope.freq_base", "FLOAT32", float("nan")),
    "parts in a text": key("split.count", "STRING", "3"),
    "tokens that are numbers": key("tokenizer.ggml.tokens", "ARRAY", [1, 2, 3]),
    "one token": key("tokenizer.ggml.tokens", "STRING", "a"),
    "one merge": key("tokenizer.ggml.merges", "STRING", "a b"),
    "empty merges": key("tokenizer.ggml.merges", "ARRAY", ["", ""]),
    "one type": key("tokenizer.ggml.token_type", "UINT32", 1),
    "one score": key("tokenizer.ggml.scores", "FLOAT32", 1.0),
    "a token's id in a text": key("tokenizer.ggml.bos_token_id", "STRING", "0"),
    "a template that is a number": key("tokenizer.chat_template", "UINT32", 7),
    "a name that is a list": key("general.name", "ARRAY", [1, 2]),
    "lists in a list": key("tokenizer.ggml.tokens", "ARRAY", [[[1]], [[2]]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_value_of_another_kind_or_size_is_refused_before_anything_is_built(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "model.gguf", base, change=HOSTILE[name])  # type: ignore[arg-type]
    built: list[object] = []
    module = importlib.import_module("recycle_onnx.checkpoint.sources.gguf.convert")
    monkeypatch.setattr(module, "write_safetensors", lambda *tensors: built.append(tensors))
    tracemalloc.start()
    assert_refused(run("attach", path, tmp_path / "out"), 2, "model.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert not built
    assert names(tmp_path) == ["model.gguf"]


def header(*values: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values)) + b"".join(values)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def nested(depth: int) -> bytes:
    return text(b"deep") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth


HEADERS = {
    "lists in lists": header(nested(100_000)),
    "a list of 2^60": header(text(b"long") + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "a text of 2^63": header(struct.pack("<Q", 1 << 63)),
    "an unknown type": header(text(b"odd") + struct.pack("<I", 99)),
    "a name twice": header(*[text(b"a") + struct.pack("<II", 4, 1)] * 2),
    "2^60 tensors": header(tensors=1 << 60),
    "a tensor of 2^64 values": header(tensors=1)
    + text(b"token_embd.weight")
    + struct.pack("<IQQIQ", 2, 1 << 32, 1 << 32, 0, 0),
    "tensors upon each other": header(tensors=2)
    + b"".join(text(name) + struct.pack("<IQIQ", 1, 8, 0, 0) for name in (b"a", b"b"))
    + bytes(64),
    "a tensor between the alignment": header(tensors=1) + text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 4) + bytes(64),
    "a tensor without values": header(tensors=1) + text(b"a") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(64),
    "half a character": header(text(b"\xff") + struct.pack("<II", 4, 1)),
    "nothing else": b"GGUF",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(HEADERS[name])
    assert_refused(run("attach", tmp_path / "model.gguf", tmp_path / "out"), 2, "model.gguf", "fetch it again")
    assert names(tmp_path) == ["model.gguf"]


def test_olmo_3_is_told_from_olmo_2_by_its_window(base: Path, tmp_path: Path) -> None:
    def as_olmo3(writer: gguf.GGUFWriter) -> None:
        values = {name.replace("llama.", "olmo2."): value for name, value in writer.kv_data[0].items()}
        writer.kv_data[0] = values
        writer.add_string("general.architecture", "olmo2")
        writer.add_uint32("olmo2.attention.sliding_window", 4096)

    path = write_gguf(tmp_path / "model.gguf", base, change=as_olmo3)
    result = run("attach", path, tmp_path / "out")
    assert_refused(result, 2, "model.gguf", "olmo2.attention.sliding_window", "OLMo 3", "Hugging Face folder")


@pytest.mark.parametrize("part", [0.0005, 0.01, 0.1, 0.9, 0.999])
def test_a_truncated_file_is_refused(base: Path, tmp_path: Path, part: float) -> None:
    path = write_gguf(tmp_path / "model.gguf", base)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    assert_refused(run("attach", path, tmp_path / "out"), 2, "model.gguf", "truncated")
    assert names(tmp_path) == ["model.gguf"]


def test_weights_that_are_not_finite_are_refused(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", base, "Q8_0")
    tensor = GgufFile(path).tensors["blk.1.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\xff")  # the first block's scale
    result = run("export", path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "mlp.up_proj.weight holds values that are not finite" in result.stderr.splitlines()[-1]
    assert names(tmp_path) == ["model.gguf"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\3\4 and so on")
    assert_refused(run("attach", tmp_path / "model.gguf", tmp_path / "out"), 2, "not a GGUF", "PK")
    assert_refused(run("attach", tmp_path / "none.gguf", tmp_path / "out"), 2, "none.gguf", "no such file")
    assert_refused(run("export", "--from-gguf", tmp_path / "none", tmp_path / "out"), 2, "none", "no such file")
    assert_refused(run("export", tmp_path / "out", "--from-gguf"), 2, "--from-gguf")


def test_the_file_is_never_replaced_by_what_is_made_of_it(base: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    path = write_gguf(tmp_path / "models" / "model.gguf", base)
    for verb in ("attach", "export"):
        assert_refused(run(verb, path, tmp_path / "models", "--force"), 2, "holds", "model.gguf")
    assert names(tmp_path / "models") == ["model.gguf"]
