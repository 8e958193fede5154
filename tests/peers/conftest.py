"""Other runtimes: run by `make test-peers`, in the environment that has transformers to make models of all families."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from recycle_onnx.checkpoint import attach
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from tests.conftest import SAMPLE

if find_spec("transformers") is None:
    collect_ignore = ["test_genai_families.py", "test_optimum_onnx.py"]


@pytest.fixture
def other_rope_bundle(tmp_path: Path) -> Path:
    """The sample with another RoPE base: a wrong graph, that must give another text."""
    changed = tmp_path / "changed"
    shutil.copytree(SAMPLE, changed, ignore=shutil.ignore_patterns("recipe", "recycler"))
    write_json(changed / "config.json", read_json(changed / "config.json") | {"rope_theta": 500.0})
    attach(changed, changed)
    export(changed, tmp_path / "bundle")
    return tmp_path / "bundle"
