"""What `inspect` says fits a screen, and leaves no doubt whether a module is worth using."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recycle_onnx.bundle import Bundle
from recycle_onnx.export import export
from recycle_onnx.provenance import write_source
from recycle_onnx.runtime.decoding.window_rows import WindowRows
from tests.conftest import SAMPLE
from tests.helpers.command import run
from tests.helpers.windows import write_checkpoint

LINES_OF_A_SCREEN = 45


def words(*arguments: str | Path) -> str:
    return " ".join(run("inspect", *arguments).stdout.replace("│", " ").split())


@pytest.mark.parametrize("folder", ["checkpoint", "bundle"])
def test_all_of_it_fits_a_screen(folder: str, sample_bundle: Path) -> None:
    shown = run("inspect", sample_bundle if folder == "bundle" else SAMPLE).stdout
    assert len(shown.splitlines()) <= LINES_OF_A_SCREEN


def test_a_trained_module_is_named_with_its_measured_acceptance(sample_bundle: Path) -> None:
    for folder in (SAMPLE, sample_bundle):
        shown = words(folder)
        assert "trained for chains of 3" in shown
        assert "acceptance 80.6%, 79.6%, 79.0% on held-out text, in training, by place in a chain" in shown


def test_an_untrained_module_is_named_with_what_to_do(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    for folder in (tiny_checkpoint, tiny_bundle):
        shown = words(folder)
        assert "untrained: `recycle-onnx train`" in shown
        assert "acceptance" not in shown


def test_inputs_and_outputs_of_graphs_are_shown_if_asked_for(tiny_bundle: Path) -> None:
    assert "logits_to_keep" not in words(tiny_bundle)
    shown = words(tiny_bundle, "--graphs")
    assert "full optional inputs logits_to_keep: int64[]" in shown
    assert "recycler inputs input_ids: int64[batch_size, sequence_length]" in shown


def test_what_layers_with_a_window_take_at_most_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    export(write_checkpoint(tmp_path / "model", context=8192), tmp_path / "bundle")
    rows = WindowRows.of(Bundle.open(tmp_path / "bundle").manifest.graphs["full"])
    assert rows is not None
    taken = (8192 + 3 * rows.most) * 128 / 1e6
    said = f"float32, 0.5 kB a token, in layers with a window for {rows.most:,} tokens at most: {taken:.1f} MB"
    assert said in words(tmp_path / "bundle")
    assert "with a window" not in words(tiny_bundle)


@pytest.mark.parametrize(("stated", "expected"), [("apache-2.0", "licence apache-2.0"), (None, "licence not stated")])
def test_the_licence_has_a_row_of_its_own(stated: str | None, expected: str, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    write_source(copy, {"kind": "hub", "id": "org/name", "license": stated})
    shown = words(copy)
    assert "source kind hub, id org/name" in shown
    assert expected in shown
    assert "license" not in shown


def test_a_base_without_a_source_states_no_licence(tiny_checkpoint: Path) -> None:
    assert "licence not stated" in words(tiny_checkpoint)
