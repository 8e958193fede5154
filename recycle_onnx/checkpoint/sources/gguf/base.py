"""What a GGUF file says of its model: architecture, config and tensors, compared with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recycle_onnx import __version__
from recycle_onnx.checkpoint.base_weights import stored_shapes
from recycle_onnx.checkpoint.families import describe
from recycle_onnx.checkpoint.sources.gguf.families import Config, config_of, family_of
from recycle_onnx.checkpoint.sources.gguf.keys import Keys
from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile
from recycle_onnx.checkpoint.sources.gguf.tensors import KEPT, Renamed, rename
from recycle_onnx.checkpoint.weights import check_shapes
from recycle_onnx.errors import InputError
from recycle_onnx.files import sha256

TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class GgufBase:
    """A GGUF file's header, read and checked; `config` is `config.json` without special tokens."""

    file: GgufFile
    keys: Keys
    config: Config
    tensors: list[Renamed]

    @classmethod
    def read(cls, path: Path) -> GgufBase:
        """Read the header of `path`.

        Raises:
            InputError: not a GGUF file, a damaged one, or one that is not supported.
        """
        file = GgufFile(path)
        keys = Keys(file)
        family = family_of(keys)
        if (layers := keys.count("block_count")) > len(file.tensors):  # each has one at least
            raise keys.error("block_count", f"is {layers}, and there are {len(file.tensors)} tensors; damaged")
        config = config_of(keys, family)
        config["vocab_size"] = _rows_of_embedding(file)
        described = describe(config, path)  # refuses sizes that contradict each other
        tensors = rename(file, family, config)
        shapes = {tensor.name: tensor.tensor.shape for tensor in tensors}
        check_shapes(path, shapes, stored_shapes(*described, set(shapes)))
        config["dtype"] = TYPE_NAMES[_type_of(tensors)]
        return cls(file, keys, config, tensors)

    def tell(self, note: Callable[[str], None]) -> None:
        """Tell the user of quantized weights, and of keys that nothing was made of."""
        name = self.file.path.name
        if quantized := [kind for kind in self.file.types() if kind not in KEPT]:
            note(
                f"{name} is quantized ({', '.join(quantized)}); its weights are dequantized to float32 as they are "
                "read, and what quantization lost stays lost"
            )
        if unused := self.keys.unused():
            note(f"{name}: keys that were not used: {', '.join(unused)}")

    def source(self) -> dict[str, Any]:
        """Return what `source.json` says of the file."""
        file = self.file
        licence = file.metadata.get("general.license")
        return {
            "kind": "gguf",
            "file": file.path.name,
            "bytes": file.path.stat().st_size,
            "sha256": sha256(file.path),
            "name": file.metadata.get("general.name"),
            "architecture": self.keys.architecture,
            "tensor_types": file.types(),
            **({} if licence is None else {"license": str(licence)}),
            "converter": f"recycle-onnx {__version__}",
        }


def _rows_of_embedding(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: tensor 'token_embd.weight' is missing; the file is damaged or of another kind")
    return file.tensors["token_embd.weight"].shape[0]


def _type_of(tensors: list[Renamed]) -> str:
    """Return the type of most of the weights."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sizes, key=lambda kind: sizes[kind])
