"""`recycle-onnx mtp`: two folders that genai opens, or one clear line and nothing written."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from recycle_onnx.checkpoint import DraftVocabulary, NewModule, attach
from recycle_onnx.contract import LOGITS
from recycle_onnx.export import export
from recycle_onnx.files import read_json
from tests.helpers import tiny
from tests.helpers.command import assert_refused, names, run


def test_it_writes_a_main_model_and_a_head_over_the_same_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run("mtp", tiny_bundle, tmp_path / "out")
    assert done.exit_code == 0, done.output
    main, head = (read_json(tmp_path / "out" / name / "genai_config.json")["model"] for name in ("main", ""))
    for config, folder in ((main, tmp_path / "out" / "main"), (head, tmp_path / "out")):
        graph = ir.load(folder / config["decoder"]["filename"]).graph
        inputs, outputs = (config["decoder"][name] for name in ("inputs", "outputs"))
        assert {name for name in inputs.values() if "%d" not in name} <= {value.name for value in graph.inputs}
        assert {name for name in outputs.values() if "%d" not in name} <= {value.name for value in graph.outputs}
        layers = config["decoder"]["num_hidden_layers"]
        assert sum(value.name.endswith(".key") for value in graph.inputs) == layers
    assert main["mtp"]["num_hidden_layers"] == head["decoder"]["num_hidden_layers"]
    assert main["vocab_size"] == head["vocab_size"]
    types = {value.name: value.dtype for value in ir.load(tmp_path / "out" / "main" / "model.onnx").graph.outputs}
    assert types[LOGITS] == ir.DataType.FLOAT16
    assert run("mtp", tiny_bundle, tmp_path / "out").exit_code == 2
    assert run("mtp", tiny_bundle, tmp_path / "out", "--force").exit_code == 0


def _without_module(folder: Path) -> Path:
    return tiny.write_base(folder, tiny.tiny_config())


def _with_draft_vocabulary(folder: Path) -> Path:
    text = folder.parent / "text.txt"
    text.write_text("the cat sat on the mat")
    attach(_without_module(folder), folder, NewModule(draft_vocabulary=DraftVocabulary(16, text)))
    return folder


def _with_other_taps(folder: Path) -> Path:
    attach(_without_module(folder), folder, NewModule(tap=("layer.1", "final_post")))
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_without_module, ["needs a recyclable module", "attach"]),
        (_with_draft_vocabulary, ["draft vocabulary of 16"]),
        (_with_other_taps, ["reads layer.1, final_post"]),
    ],
)
def test_a_module_that_genai_cannot_feed_is_refused(make: object, words: list[str], tmp_path: Path) -> None:
    assert callable(make)
    export(make(tmp_path / "model"), tmp_path / "bundle")
    before = names(tmp_path)
    assert_refused(run("mtp", tmp_path / "bundle", tmp_path / "out"), 2, *words)
    assert names(tmp_path) == before


def test_keys_and_values_in_int8_are_refused(int8_cache_bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("mtp", int8_cache_bundle, tmp_path / "out"), 2, "caches of floats", "without --kv")


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    assert_refused(run("mtp", tmp_path, tmp_path / "out"), 2, "not a bundle")
