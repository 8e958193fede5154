"""An attached module starts from its base, and the base stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from recycle_onnx.checkpoint import Checkpoint, NewModule, attach
from recycle_onnx.errors import InputError
from tests.helpers import tiny


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base", tiny.tiny_config(num_layers=3))


def test_the_module_starts_from_the_last_layers_of_its_base(base: Path, tmp_path: Path) -> None:
    attach(base, tmp_path / "out", NewModule(num_layers=2))
    theirs = load_file(base / "model.safetensors")
    own = load_file(tmp_path / "out" / "recycler" / "model.safetensors")
    for index in range(2):
        for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"):
            expected = theirs[f"model.layers.{index + 1}.{part}.weight"]
            np.testing.assert_array_equal(own[f"layers.{index}.{part}.weight"], expected)
    np.testing.assert_array_equal(own["norm.weight"], theirs["model.norm.weight"])


def test_the_copied_base_is_bit_for_bit_the_base(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"another format of the weights")
    attach(base, tmp_path / "out")
    for path in base.iterdir():
        if path.suffix != ".bin":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_attaching_in_place_adds_the_module_only(base: Path) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    attach(base, base)
    after = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    assert after == before
    with Checkpoint.open(base) as checkpoint:
        assert checkpoint.recycler is not None


def test_attaching_again_in_place_needs_force(base: Path) -> None:
    attach(base, base)
    with pytest.raises(InputError, match="--force"):
        attach(base, base)
    attach(base, base, NewModule(num_layers=2), force=True)


def test_the_same_seed_gives_the_same_module(base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        attach(base, tmp_path / name, NewModule(seed=seed))
    first, second, third = ((tmp_path / n / "recycler" / "model.safetensors").read_bytes() for n in "abc")
    assert first == second != third
