"""A fresh checkpoint has the preset's shape, the tokenizer's vocabulary, and opens like any other."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from recycle_onnx.checkpoint import Checkpoint, create
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256
from recycle_onnx.tokenizer import load_tokenizer
from tests.helpers import tiny
from tests.helpers.command import assert_one_error, assert_refused, names, run
from tests.helpers.patience import PATIENCE
from tests.helpers.processes import start


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    tiny.tokenizer().save(str(path))
    return path


def test_a_created_checkpoint_opens_with_the_presets_shape(tokenizer: Path, tmp_path: Path) -> None:
    create(tmp_path / "out", "tiny", tokenizer)
    with Checkpoint.open(tmp_path / "out") as source:
        assert (source.base.num_layers, source.base.hidden_size) == (6, 256)
        assert source.base.vocab_size == tiny.tokenizer().get_vocab_size()
        assert source.recycler is not None
        assert source.recycler.num_layers == 1
        embedding = source.base_weights.float32("model.embed_tokens.weight")
        assert embedding.std() == pytest.approx(0.02, rel=0.02)
        added = source.base_weights.float32("model.layers.3.mlp.down_proj.weight")
        assert added.std() == pytest.approx(0.02 / 12**0.5, rel=0.02)
        assert (source.base_weights.float32("model.norm.weight") == 1).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == 0


def test_the_seed_decides_the_weights(tokenizer: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        create(tmp_path / name, "tiny", tokenizer, seed=seed)
    digests = [sha256(tmp_path / name / "model.safetensors") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_weights_in_several_files_are_those_in_one(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "one", "tiny", tokenizer)
    monkeypatch.setattr("recycle_onnx.checkpoint.fresh.SHARD", 500_000)
    create(tmp_path / "many", "tiny", tokenizer)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    with Checkpoint.open(tmp_path / "one") as one, Checkpoint.open(tmp_path / "many") as many:
        assert one.base.tensor_shapes() == many.base.tensor_shapes()
        for name in one.base.tensor_shapes():
            np.testing.assert_array_equal(one.base_weights.stored(name), many.base_weights.stored(name))


def test_the_command_takes_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    result = run("create", tmp_path / "out", "--tokenizer", base, "--layers", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recycler"]["num_layers"] == 2
    copied = (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert copied == (base / "tokenizer_config.json").read_text()


def test_what_cannot_be_created_is_refused_and_leaves_nothing(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{}")
    out = tmp_path / "out"
    for arguments, words in (
        (("--tokenizer", tmp_path / "none.json"), ("none.json", "no such file")),
        (("--tokenizer", tmp_path / "broken.json"), ("not a tokenizer",)),
        (("--tokenizer", tokenizer, "--layers", 7), ("--layers is 7", "1 to 6")),
        (("--tokenizer", tokenizer, "--layers", 0), ("--layers is 0",)),
        (("--tokenizer", tokenizer, "--preset", "huge"), ("--preset", "huge")),
    ):
        assert_refused(run("create", out, *arguments), 2, *words)
        assert names(tmp_path) == ["broken.json", "tokenizer.json"]
    out.mkdir()
    assert_refused(run("create", out, "--tokenizer", tokenizer), 2, "exists", "--force")


def test_a_tokenizer_without_a_token_that_ends_a_text_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    result = run("create", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer.json")
    assert_refused(result, 2, "no token that ends a text", "eos_token")


@pytest.mark.skipif(sys.platform == "win32", reason="sets POSIX limits")
@pytest.mark.parametrize("kilobytes", [1, 500])
def test_a_full_disk_leaves_nothing_behind(kilobytes: int, tokenizer: Path, tmp_path: Path) -> None:
    import resource

    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1024 * kilobytes, 1024 * kilobytes))
    process = start("create", tmp_path / "out", "--tokenizer", tokenizer, limit=limit)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, stderr
    assert stdout == b""
    assert_one_error(stderr.decode(), "out", "cannot write")
    assert names(tmp_path) == ["tokenizer.json"]


def test_a_damaged_tokenizer_is_named_as_the_user_named_it(tokenizer: Path, tmp_path: Path) -> None:
    whole = json.loads(tokenizer.read_text())
    folder = tmp_path / "folder"
    folder.mkdir()
    for content in ("{", "[" * 100_000, "{}", '{"model": 7}', json.dumps({**whole, "model": {"type": "BPE"}})):
        for path in (tmp_path / "broken.json", folder / "tokenizer.json"):
            path.write_text(content)
        for named in (tmp_path / "broken.json", folder):
            result = run("create", tmp_path / "out", "--tokenizer", named)
            assert_refused(result, 2, str(named))
            assert ".out." not in result.stderr
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text("[")
    result = run("create", tmp_path / "out", "--tokenizer", folder)
    assert_refused(result, 2, str(folder / "tokenizer_config.json"), "not valid JSON")


@pytest.mark.parametrize("name", ["padding", "truncation", "prefix"])
def test_a_tokenizer_that_would_end_the_process_is_refused_or_works(name: str, tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads(tokenizer.read_text())
    if name == "padding":
        content["padding"] = {
            "strategy": {"Fixed": 1 << 33}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": tiny.END,
        }  # fmt: skip
    elif name == "truncation":
        content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}
    else:
        content["model"]["continuing_subword_prefix"] = "x" * 1000
    tokenizer.write_text(json.dumps(content))
    if name == "prefix":
        with pytest.raises(InputError, match="not a tokenizer"):
            load_tokenizer(tmp_path)
    else:
        assert len(load_tokenizer(tmp_path).encode("the cat").ids) > 2
