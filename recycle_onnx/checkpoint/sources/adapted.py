"""A base with an adapter: a source like any other, whose folder refers to both or holds what merging them gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recycle_onnx.checkpoint.adapter import Adapter
from recycle_onnx.checkpoint.families import read_config
from recycle_onnx.checkpoint.quantized import without_quantization
from recycle_onnx.checkpoint.sources.gguf_source import GgufSource
from recycle_onnx.checkpoint.sources.hub import HubModel
from recycle_onnx.checkpoint.sources.referred import REFERENCE, except_weights, find_weights, refer_adapted
from recycle_onnx.errors import InputError
from recycle_onnx.provenance import read_source, write_source
from recycle_onnx.untrusted import copy_tree


@dataclass(frozen=True)
class AdaptedSource:
    """A folder, GGUF file or hub model with the adapter to merge into it."""

    base: Path | GgufSource | HubModel
    adapter: Path

    @property
    def name(self) -> str:
        """The name of the base."""
        return self.base.resolve().name if isinstance(self.base, Path) else self.base.name

    def write(self, folder: Path, *, link: bool = False) -> None:
        """Fill the empty `folder`; with `link` its weights may stay where they are."""
        self.refer(folder, folder)
        if not link:
            base, family = read_config(folder / "config.json")
            find_weights(folder, base, family).copy_to(folder)
            (folder / REFERENCE).unlink()
            without_quantization(folder)

    def refer(self, folder: Path, place: Path) -> None:
        """Fill the empty `folder`, which will lie at `place`, with all but the weights.

        Raises:
            InputError: no base, no adapter, or not one that can be merged.
        """
        adapter = Adapter(self.adapter)
        if isinstance(self.base, GgufSource):
            self.base.refer(folder, place)
            refer_adapted(folder, self.adapter, place)
        else:
            base = self.base if isinstance(self.base, Path) else self.base.snapshot()
            if not (base / "config.json").is_file():
                raise InputError(f"{base}: not a base; expected a folder with config.json and model.safetensors in it")
            copy_tree(base, folder, except_weights(base))
            refer_adapted(folder, self.adapter, place, weights=base)
        if isinstance(self.base, HubModel):
            write_source(folder, self.base.provenance())
        origin = read_source(folder) or {"kind": "folder", "name": self.name}
        write_source(folder, {**origin, "adapter": adapter.origin()})
