"""What a bundle asks of memory: room, and bytes a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recycle_onnx.bundle import Manifest
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.memory import SystemMemory

BITS = {"int4": 4.6, "int8": 8.6, "fp16": 16.0, "fp32": 32.0}
"""Of a weight in the embedding, scales included."""


@dataclass(frozen=True)
class Needs:
    """The bytes of both halves' weights, of both caches for a text as long as the context, and read by a full step.

    `tokens_per_second` is the most that `full` can give at this bandwidth on a short text.
    """

    weights_bytes: int
    cache_bytes: int
    context_length: int
    full_step_bytes: int
    tokens_per_second: float

    @property
    def total_bytes(self) -> int:
        """Weights and caches."""
        return self.weights_bytes + self.cache_bytes


def find(manifest: Manifest, bandwidth: Bandwidth) -> Needs:
    """Compute the needs from the manifest."""
    step = full_step_bytes(manifest)
    return Needs(
        weights_bytes=weights_bytes(manifest),
        cache_bytes=manifest.context_length * token_bytes(manifest),
        context_length=manifest.context_length,
        full_step_bytes=step,
        tokens_per_second=1e9 * bandwidth.all_threads_gb_s / step,
    )


def weights_bytes(manifest: Manifest) -> int:
    """Count the bytes of both halves' weights."""
    return sum(file.bytes for name, file in manifest.files.items() if name.endswith(".data"))


def token_bytes(manifest: Manifest) -> int:
    """Count the bytes that both caches take for each token of a text."""
    return sum(spec.row_bytes for spec in manifest.graphs.values())


def full_step_bytes(manifest: Manifest) -> int:
    """Count the bytes of weights that a full step on one token reads.

    That is all of them, but of an embedding of its own one row only.
    """
    base, weights = manifest.base, manifest.files["model.onnx.data"].bytes
    if base["tied_embeddings"]:
        return weights
    return weights - int(base["vocab_size"] * base["hidden_size"] * BITS.get(manifest.precision, 32) / 8)


def findings(needs: Needs, memory: SystemMemory) -> Iterator[Finding]:
    """Yield a finding where weights, or weights and caches, do not fit."""
    most, free = memory.most_bytes, memory.free_bytes
    if most is None or free is None:
        return
    if needs.weights_bytes > most:
        yield Finding(
            "broken",
            f"the weights take {gigabytes(needs.weights_bytes)}, and this process can have {gigabytes(most)}",
            "the bundle cannot be loaded here",
            "quantize it (`recycle-onnx quantize BUNDLE SMALL --bits 4`), or raise the memory limit",
        )
    elif needs.weights_bytes > free:
        yield Finding(
            "advice",
            f"the weights take {gigabytes(needs.weights_bytes)}, and {gigabytes(free)} are free now",
            "loading will push other programs out of memory, or fail",
            "close other programs, or quantize the bundle (`recycle-onnx quantize`)",
        )
    elif needs.total_bytes > free:
        rows = int((free - needs.weights_bytes) / (needs.cache_bytes / needs.context_length))
        yield Finding(
            "advice",
            f"caches of a text of {needs.context_length} tokens take {gigabytes(needs.cache_bytes)} beside the weights",
            f"they grow with the text: about {rows} tokens fit into the {gigabytes(free)} that are free",
            "keep texts shorter than that, or free memory",
        )


def gigabytes(count: float) -> str:
    """Write bytes as people read them, 10⁹ a GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
