"""What a text's memory is taken by."""

from __future__ import annotations

from dataclasses import dataclass

from recycle_onnx.bundle import Manifest
from recycle_onnx.doctor.needs import cache_bytes, weights_bytes
from recycle_onnx.machine.memory import rss_bytes


@dataclass(frozen=True)
class MemoryParts:
    """The bytes of both halves' weights, of the keys and values of one text, and of all else that the process holds.

    The rest is the program with its libraries, ONNX Runtime's working memory, and room for a longer text.
    """

    weights_bytes: int
    cache_bytes: int
    rest_bytes: int

    @classmethod
    def of(cls, manifest: Manifest, tokens: int) -> MemoryParts:
        """Measure this process, in which a text of so many tokens was just written."""
        weights, cache = weights_bytes(manifest), cache_bytes(manifest, tokens)
        return cls(weights, cache, max(0, rss_bytes() - weights - cache))

    def __str__(self) -> str:
        return (
            f"memory in MB: weights {self.weights_bytes / 1e6:.0f}, keys and values {self.cache_bytes / 1e6:.0f}, "
            f"the program and its working memory {self.rest_bytes / 1e6:.0f}"
        )
