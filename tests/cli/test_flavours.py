"""The flavour of a bundle, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, export, quantize_bundle
from recycle_onnx.files import read_json, write_json
from tests.helpers.command import assert_refused, names, run
from tests.helpers.skips import needs_standard


@needs_standard
def test_every_verb_takes_a_standard_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle, small = tmp_path / "bundle", tmp_path / "small"
    done = run("export", tiny_checkpoint, bundle, "--flavour", "standard")
    assert done.exit_code == 0, done.output
    assert run("quantize", bundle, small, "--no-compare").exit_code == 0
    for folder, precision in ((bundle, "fp32"), (small, "int4")):
        found = json.loads(run("inspect", folder, "--json").stdout)
        assert (found["flavour"], found["precision"], found["provenance"]["opset"]) == ("standard", precision, 24)
        assert run("mtp", folder, tmp_path / f"{precision}.mtp").exit_code == 0
        texts = [
            json.loads(run("generate", folder, "the cat", "-n", 6, "--strategy", strategy, "--json").stdout)["text"]
            for strategy in ("full", "verify")
        ]
        assert texts[0] == texts[1]
    straight = tmp_path / "straight"
    run("export", tiny_checkpoint, straight, "--flavour", "standard", "--precision", "int4", "--no-compare")
    assert [read_json(folder / "recycle.json")["files"] for folder in (small, straight)] == [
        read_json(small / "recycle.json")["files"]
    ] * 2


def test_a_flavour_that_is_not_known_is_refused(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    refused = run("export", tiny_checkpoint, tmp_path / "bundle", "--flavour", "vanilla")
    assert_refused(refused, 2, "'vanilla'", "ort", "standard")
    with pytest.raises(InputError, match="'vanilla' is not known; expected one of: ort, standard"):
        export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(flavour="vanilla"))
    run("export", tiny_checkpoint, tmp_path / "later")
    manifest = tmp_path / "later" / "recycle.json"
    write_json(manifest, {**read_json(manifest), "flavour": "vanilla"})
    with pytest.raises(InputError, match="'vanilla'"):
        quantize_bundle(tmp_path / "later", tmp_path / "bundle")
    assert names(tmp_path) == ["later"]
