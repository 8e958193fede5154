"""What four bits cost: every recipe quantized, dequantized and scored by the same float32 graph; Q4_0 by PyPI's gguf.

    python benchmarks/quality.py CHECKPOINT TEXT      perplexity and divergence of the full model, by recipe
    python benchmarks/quality.py --errors             errors of weights and of products in the 1.1 B shape

Needs the extra `export`, and gguf.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import gguf
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.export import Quantization, export
from recycle_onnx.export.block_quantizer import dequantize, quantize
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.sessions import open_original

Matrix = NDArray[np.float32]
Recipe = Callable[[str, Matrix], Matrix]
Q4_0, Q8_0 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
WINDOW = 256


def ours(how: Quantization) -> Recipe:
    """Make a recipe of this project."""

    def recipe(name: str, matrix: Matrix) -> Matrix:
        own = how.for_matrix(name, matrix.shape[1])
        return matrix if own is None else dequantize(quantize(matrix, own), own)

    return recipe


def q4_0(name: str, matrix: Matrix) -> Matrix:
    """llama.cpp's: blocks of 32 with a float16 scale; the output (tied or not) has eight bits."""
    if matrix.shape[1] % 32:
        return matrix
    kind = Q8_0 if "lm_head" in name or "embed_tokens" in name else Q4_0
    values: Matrix = gguf.quants.dequantize(gguf.quants.quantize(matrix, kind), kind)
    return values


def q4_0_throughout(_: str, matrix: Matrix) -> Matrix:
    """Return the recipe with four bits everywhere."""
    return q4_0("", matrix)


RECIPES: dict[str, Recipe] = {
    "float32": lambda _, matrix: matrix,
    "llama.cpp Q4_0, output Q8_0": q4_0,
    "llama.cpp Q4_0 throughout": q4_0_throughout,
    **{
        f"block {size} {'symmetric' if symmetric else 'asymmetric'} {method}": ours(
            Quantization(block_size=size, symmetric=symmetric, method=method, keep=("projection",))
        )
        for size in (32, 64, 128)
        for symmetric in (True, False)
        for method in ("rtn", "mse")
    },
    **{
        f"block {size} asymmetric mse, embedding and output at 8 bits": ours(Quantization(block_size=size))
        for size in (32, 64, 128)
    },
    "int8": ours(Quantization(bits=8)),
}


class Score(NamedTuple):
    """Perplexity, and nats a token by which the distribution departs from float32's (Kullback-Leibler)."""

    perplexity: float
    divergence: float


def log_probabilities(bundle: Bundle, windows: list[list[int]]) -> Matrix:
    """Of the full model, for each token's successor [tokens, V]."""
    model = Model(bundle, "cpu", None, open_original)
    rows = []
    for ids in windows:
        half = model.decoder("full").full
        logits = half.read(ids, None, np.empty((len(ids), half.spec.state_size), np.float32), keep=len(ids))
        shifted = logits[:-1].astype(np.float64) - logits[:-1].max(-1, keepdims=True)
        rows.append((shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32))
    return np.concatenate(rows)


def compare(exact: Matrix, actual: Matrix, following: list[int]) -> Score:
    """Score what a recipe gives against what float32 gives."""
    divergence = (np.exp(exact) * (exact - actual)).sum(-1).mean()
    return Score(float(np.exp(-actual[np.arange(len(following)), following].mean())), float(divergence))


def apply(recipe: Recipe, folder: Path) -> None:
    """Replace the full model's matrices by what is left of them."""
    for value in ir.load(folder / "model.onnx").graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or len(tensor.shape) != 2 or str(value.name).startswith("rope"):
            continue
        stored = np.memmap(tensor.path, np.float32, "r+", tensor.offset or 0, tuple(tensor.shape.numpy()))
        product = any(use.node.op_type == "MatMul" for use in value.uses())  # stored [K, N]; all others [N, K]
        rows = np.ascontiguousarray(stored.T if product else stored)
        changed = recipe(str(value.name), rows)
        stored[:] = changed.T if product else changed
        stored.flush()


def score(checkpoint: Path, text: Path, windows: int) -> dict[str, Score]:
    """Every recipe's score."""
    with tempfile.TemporaryDirectory() as work:
        plain, altered = Path(work) / "plain", Path(work) / "altered"
        export(checkpoint, plain)
        manifest = Manifest.read(plain / "recycle.json")
        ids = Model(Bundle(plain, manifest), "cpu", None).encode(text.read_text(encoding="utf-8"))
        size = min(WINDOW, manifest.context_length)
        pieces = [ids[start : start + size] for start in range(0, len(ids) - size, size)][:windows]
        following = [token for piece in pieces for token in piece[1:]]
        exact = log_probabilities(Bundle(plain, manifest), pieces)
        scores = {}
        for name, recipe in RECIPES.items():
            shutil.copytree(plain, altered)
            apply(recipe, altered)
            scores[name] = compare(exact, log_probabilities(Bundle(altered, manifest), pieces), following)
            shutil.rmtree(altered)
    return scores


def product_error(how: Quantization | None, matrix: Matrix, x: Matrix) -> tuple[float, float]:
    """Relative error of the weights, and of the product with activations rounded to int8; None is Q4_0."""
    exact = x @ matrix.T
    if how is None:
        weights = q4_0("", matrix)
        product = gguf.quants.dequantize(gguf.quants.quantize(x, Q8_0), Q8_0) @ weights.T
    else:
        blocks = quantize(matrix, how)
        weights, product = dequantize(blocks, how), _kernel(how, blocks, x)
    return _relative(weights, matrix), _relative(product, exact)


def _relative(actual: Matrix, exact: Matrix) -> float:
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


def _kernel(how: Quantization, blocks: tuple[Matrix | None, ...], x: Matrix) -> Matrix:
    """Compute what MatMulNBits with accuracy level 4 gives."""
    packed, scales, zero_points = blocks
    assert packed is not None
    assert scales is not None
    constants = {"packed": packed, "scales": scales} | ({} if zero_points is None else {"zero_points": zero_points})
    inputs = [ir.val("x", ir.DataType.FLOAT, x.shape)]
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in constants.items()]
    sizes = {"K": x.shape[1], "N": len(scales), "bits": how.bits, "block_size": how.block_size, "accuracy_level": 4}
    node = ir.node("MatMulNBits", [*inputs, *values], sizes, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], initializers=values, opset_imports={"": 23, "com.microsoft": 1}
    )
    model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    result: Matrix = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return result


def errors() -> dict[str, dict[str, tuple[float, float]]]:
    """By recipe and distribution of the weights: errors of a 2048 x 5632 matrix, as in TinyLlama's feed-forward."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((16, 5632)).astype(np.float32)
    x[:, generator.choice(5632, 8)] *= 20  # a few large features, as real activations have
    draws = {
        "Gaussian": generator.standard_normal((2048, 5632)).astype(np.float32),
        "heavy-tailed": generator.standard_t(3, (2048, 5632)).astype(np.float32),
    }
    recipes: dict[str, Quantization | None] = {"llama.cpp Q4_0": None} | {
        f"block {size} {method}": Quantization(block_size=size, method=method)
        for size in (32, 64, 128)
        for method in ("rtn", "mse")
    }
    return {
        name: {kind: product_error(how, matrix, x) for kind, matrix in draws.items()} for name, how in recipes.items()
    }


@click.command()
@click.argument("checkpoint", type=Path, required=False)
@click.argument("text", type=Path, required=False)
@click.option("--windows", default=40, show_default=True, help=f"Pieces of {WINDOW} tokens to score.")
@click.option("--errors", "only_errors", is_flag=True, help="Errors on random matrices instead.")
@click.option("--json", "json_", is_flag=True)
def main(checkpoint: Path | None, text: Path | None, windows: int, only_errors: bool, json_: bool) -> None:
    """Compare recipes of four bits."""
    if only_errors:
        table = errors()
        for name, kinds in table.items():
            listed = ", ".join(f"{kind}: weights {w:.4f}, products {y:.4f}" for kind, (w, y) in kinds.items())
            click.echo(json.dumps({name: kinds}) if json_ else f"{name}: {listed}")
        return
    if checkpoint is None or text is None:
        raise click.UsageError("expected CHECKPOINT and TEXT, or --errors")
    scores = score(checkpoint, text, windows)
    if json_:
        click.echo(json.dumps({name: value._asdict() for name, value in scores.items()}, indent=2))
        return
    for name, value in scores.items():
        change = value.perplexity / scores["float32"].perplexity - 1
        click.echo(f"{name}: perplexity {value.perplexity:.4f} ({change:+.2%}), divergence {value.divergence:.5f}")


if __name__ == "__main__":
    main()
