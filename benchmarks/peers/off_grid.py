"""A Llama-type model off any grid of few bits: the same function, other weights; as a checkpoint and for llama.cpp.

    python benchmarks/peers/off_grid.py CHECKPOINT F16.gguf OUT

Weights that come from a quantized file lie on its grid, which flatters whatever rounds to that grid again. Here each
column that reads a norm's output, and each row whose output another matrix reads, is scaled by a random factor, and
what stands before or behind it by the inverse. OUT gets `checkpoint`, without a module, and `f16.gguf`, from which
`requantize.py` makes llama.cpp's other types. F16.gguf holds the weights of CHECKPOINT. Needs gguf.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.gguf_writer import gguf_names

SEED, SPREAD = 7, 0.25
"""Factors are e to the power of normal numbers with this deviation: one in twenty is beyond 0.6 or 1.6."""


class Change(NamedTuple):
    """A tensor, and what its values are multiplied by: an array that broadcasts over it."""

    name: str
    factors: NDArray[np.float32]


def changes(config: dict[str, Any], rng: np.random.Generator) -> Iterator[Change]:
    """All changes of a model; together they leave its function as it is."""
    heads, kv_heads, size = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))

    def factors(count: int) -> NDArray[np.float32]:
        return np.exp(SPREAD * rng.standard_normal(count)).astype(np.float32)

    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            columns = factors(config["hidden_size"])
            yield Change(f"{place}{norm}.weight", 1 / columns)
            yield from (Change(f"{place}{reader}.weight", columns) for reader in readers)
        rows = factors(kv_heads * size)
        yield Change(f"{place}self_attn.v_proj.weight", 1 / rows[:, None])
        shared = np.repeat(rows.reshape(kv_heads, 1, size), heads // kv_heads, axis=1)  # by the heads of a group
        yield Change(f"{place}self_attn.o_proj.weight", shared.reshape(-1))
        rows = factors(config["intermediate_size"])
        yield Change(f"{place}mlp.up_proj.weight", 1 / rows[:, None])
        yield Change(f"{place}mlp.down_proj.weight", rows)


@click.command()
@click.argument("checkpoint", type=Path)
@click.argument("f16", type=Path)
@click.argument("out", type=Path)
def main(checkpoint: Path, f16: Path, out: Path) -> None:
    """Write OUT."""
    folder = out / "checkpoint"
    folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.suffix == ".json" and file.name != "source.json":
            shutil.copy(file, folder)
    shutil.copy(f16, out / "f16.gguf")
    tensors = load_file(checkpoint / "model.safetensors")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "f16.gguf", "r+").tensors}
    config = json.loads((checkpoint / "config.json").read_text())
    new_name = gguf_names(config)
    for name, factors in changes(config, np.random.default_rng(SEED)):
        tensors[name] = tensors[name] * factors
        data = theirs[new_name(name)].data
        data[...] = (data * factors).astype(data.dtype)
    save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
    main()
