"""The pooling of an embedding base, from its checkpoint into the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.bundle import MANIFEST, Bundle
from recycle_onnx.checkpoint import attach
from recycle_onnx.checkpoint.pooling import read_pooling
from recycle_onnx.errors import InputError
from recycle_onnx.export import Quantization, QuantizeOptions, export, quantize_bundle
from recycle_onnx.files import read_json, write_json
from tests.helpers import tiny
from tests.helpers.pooling import LAST, MODULES, write_pooling

OLD = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (LAST, "last"),
        ({**OLD, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_what_sentence_transformers_writes_is_read(config: dict[str, Any], pooling: str, tmp_path: Path) -> None:
    write_pooling(tmp_path, config)
    assert read_pooling(tmp_path) == pooling
    (tmp_path / "modules.json").unlink()  # of a checkpoint that somebody copied in part
    assert read_pooling(tmp_path) == pooling


def test_most_bases_say_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None
    write_json(tmp_path / "modules.json", MODULES[:1])
    assert read_pooling(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**OLD, "pooling_mode_cls_token": True}, "'cls' is not supported; expected mean or lasttoken"),
        ({**OLD, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "'mean[+]max'"),
        ({"pooling_mode": "weightedmean"}, "'weightedmean'"),
        ({"pooling_mode": ["mean", "max"]}, "'mean[+]max'"),
        (OLD, "'none'"),
    ],
)
def test_another_pooling_is_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_pooling(tmp_path, config)
    with pytest.raises(InputError, match=f"1_Pooling.config.json: pooling {words}"):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([*MODULES, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}], "'Dense' is not supported"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}], "'../elsewhere'"),
        ([{"type": "sentence_transformers.models.Pooling"}], "path is None"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "gone"}], "gone"),
        ({"modules": []}, "expected a JSON list"),
        ([3], "expected a JSON list"),
    ],
)
def test_modules_that_make_no_sense_are_refused(modules: Any, words: str, tmp_path: Path) -> None:
    write_pooling(tmp_path, LAST)
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(InputError, match=words):
        read_pooling(tmp_path)


def test_damaged_modules_are_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        read_pooling(tmp_path)


def test_the_pooling_goes_along_into_every_bundle(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    export(base, tmp_path / "plain")
    assert Bundle.open(tmp_path / "plain").manifest.pooling is None
    write_pooling(base, LAST)
    attach(base, tmp_path / "copied")
    attach(base, tmp_path / "referred", reference=True)
    for checkpoint in (base, tmp_path / "copied", tmp_path / "referred"):
        export(checkpoint, tmp_path / "bundle", force=True)
        assert Bundle.open(tmp_path / "bundle").manifest.pooling == "last", checkpoint
    quantize_bundle(tmp_path / "bundle", tmp_path / "int8", Quantization(8), QuantizeOptions(compare=False))
    assert Bundle.open(tmp_path / "int8").manifest.pooling == "last"
    with recycle_onnx.load(tmp_path / "bundle", threads=1) as model:
        assert (model.embed("the cat") == model.embed("the cat", pooling="last")).all()
        assert not (model.embed("the cat") == model.embed("the cat", pooling="mean")).all()


def test_a_pooling_that_is_not_served_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    write_pooling(base, {"pooling_mode": "cls"})
    with pytest.raises(InputError, match="'cls'"):
        export(base, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_manifest_with_another_pooling_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / MANIFEST
    write_json(path, {**read_json(path), "pooling": "max"})
    with pytest.raises(InputError, match="pooling is 'max'; expected null or one of mean, last"):
        Bundle.open(tmp_path / "bundle")
