"""A base of any size with random weights, to measure speed where no trained one is at hand.

    python benchmarks/random_checkpoint.py OUT [--hidden-size N] [--layers N] …

`full` and `alternate` cost the same whatever the weights are; `verify` depends on the acceptance rate, which random
weights say nothing about. The tokenizer is the sample's. Continue with `recycle-onnx attach OUT OUT`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

from recycle_onnx.checkpoint import BaseConfig
from recycle_onnx.files import new_folder, write_json

SAMPLE = Path(__file__).parents[1] / "samples" / "stories"
HEAD_DIM = 64


@click.command()
@click.argument("out", type=Path)
@click.option("--hidden-size", default=768, show_default=True)
@click.option("--intermediate-size", default=2048, show_default=True)
@click.option("--layers", default=12, show_default=True)
@click.option("--kv-heads", default=4, show_default=True)
@click.option("--vocabulary", default=8192, show_default=True)
@click.option("--context", default=2048, show_default=True)
@click.option("--force", is_flag=True)
def main(
    out: Path,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    kv_heads: int,
    vocabulary: int,
    context: int,
    force: bool,
) -> None:
    """Write a float16 Llama with random weights as OUT."""
    config = BaseConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=layers,
        num_heads=hidden_size // HEAD_DIM,
        num_kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        vocab_size=vocabulary,
        context_length=context,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tied_embeddings=True,
    )
    generator = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float16)
        if len(shape) == 1
        else (generator.standard_normal(shape, np.float32) / shape[-1] ** 0.5).astype(np.float16)
        for name, shape in config.tensor_shapes().items()
    }
    with new_folder(out, force=force) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", config.to_hugging_face())
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(SAMPLE / name, folder / name)
    click.echo(f"{out}: {sum(tensor.size for tensor in tensors.values()) / 1e6:.0f} million random parameters")


if __name__ == "__main__":
    main()
