"""What a bundle asks of memory: room, and bytes a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recycle_onnx.bundle import Manifest
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.machine.bandwidth import Bandwidth
from recycle_onnx.machine.memory import SystemMemory
from recycle_onnx.runtime.decoding.window_rows import WindowRows
from recycle_onnx.runtime.decoding.window_rows import cache_bytes as bytes_of_rows

BITS = {"int4": 4.6, "int8": 8.6, "fp16": 16.0, "fp32": 32.0}
"""Of a weight in the embedding, scales included."""


@dataclass(frozen=True)
class Needs:
    """The bytes of both halves' weights, of both caches for a text as long as the context, and read by a full step.

    `tokens_per_second` is the most that `full` can give at this bandwidth on a short text. Of the caches,
    `window_bytes` are those of layers with a window, which grow with the first `window_rows` tokens of a text only. In
    servers that save prompts they keep all rows, and caches take `saved_cache_bytes`.
    """

    weights_bytes: int
    cache_bytes: int
    context_length: int
    full_step_bytes: int
    tokens_per_second: float
    window_bytes: int = 0
    window_rows: int = 0
    saved_cache_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """Weights and caches."""
        return self.weights_bytes + self.cache_bytes

    def tokens_in(self, size: float) -> int:
        """Return about how many tokens a text can have whose caches take so many bytes."""
        each = (self.cache_bytes - self.window_bytes) / self.context_length
        if not self.window_rows:
            return int(size / each)
        first = size / (each + self.window_bytes / self.window_rows)
        return int(max(first, (size - self.window_bytes) / each if each else 0))


def find(manifest: Manifest, bandwidth: Bandwidth) -> Needs:
    """Compute the needs from the manifest."""
    step, context = full_step_bytes(manifest), manifest.context_length
    windows = [rows.most for spec in manifest.graphs.values() if (rows := WindowRows.of(spec)) is not None]
    return Needs(
        weights_bytes=weights_bytes(manifest),
        cache_bytes=cache_bytes(manifest, context),
        context_length=context,
        full_step_bytes=step,
        tokens_per_second=1e9 * bandwidth.all_threads_gb_s / step,
        window_bytes=cache_bytes(manifest, context) - context * growth(manifest) if windows else 0,
        window_rows=min(context, *windows) if windows else 0,
        saved_cache_bytes=context * sum(spec.row_bytes for spec in manifest.graphs.values()),
    )


def weights_bytes(manifest: Manifest) -> int:
    """Count the bytes of both halves' weights."""
    return sum(file.bytes for name, file in manifest.files.items() if name.endswith(".data"))


def cache_bytes(manifest: Manifest, tokens: int) -> int:
    """Count the bytes that keys and values of both halves take for a text of so many tokens."""
    return sum(bytes_of_rows(spec, tokens) for spec in manifest.graphs.values())


def growth(manifest: Manifest) -> int:
    """Count the bytes that both caches take for a token more of a long text: layers with a window take none."""
    return sum(
        spec.row_bytes * spec.has_window().count(False) // max(1, len(spec.has_window()))
        for spec in manifest.graphs.values()
    )


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
        rows = needs.tokens_in(free - needs.weights_bytes)
        yield Finding(
            "advice",
            f"caches of a text of {needs.context_length} tokens take {gigabytes(needs.cache_bytes)} beside the weights",
            f"they grow with the text: about {rows} tokens fit into the {gigabytes(free)} that are free",
            "keep texts shorter than that, or free memory",
        )


def gigabytes(count: float) -> str:
    """Write bytes as people read them, 10⁹ a GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
