"""A GGUF header as values that JSON can hold, and back, whatever became of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from recycle_onnx.checkpoint.sources.gguf.reader import GgufFile

ALIGNMENT = 32
STRING, ARRAY = 8, 9
WORD, LONG = (1 << 32) - 1, (1 << 64) - 1


def read_gguf(path: Path) -> tuple[dict[str, Any], int]:
    """Metadata and tensors of a file, and where the tensors' values begin."""
    file = GgufFile(path)
    start = min(tensor.offset for tensor in file.tensors.values())
    tensors = [
        {
            "name": t.name,
            "shape": list(t.shape[::-1]),
            "type": GGMLQuantizationType[t.type].value,
            "offset": t.offset - start,
        }
        for t in file.tensors.values()
    ]
    return {"version": 3, "metadata": dict(file.metadata), "tensors": tensors}, start


def written(raw: Any, values: bytes) -> bytes:
    """A file of what is left of `raw`; counts are those of what is there."""
    raw = raw if isinstance(raw, dict) else {}
    metadata, tensors = raw.get("metadata"), raw.get("tensors")
    metadata = metadata if isinstance(metadata, dict) else {}
    tensors = tensors if isinstance(tensors, list) else []
    head = b"GGUF" + struct.pack("<IQQ", _whole(raw.get("version")) & WORD, len(tensors), len(metadata))
    head += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    head += b"".join(map(_tensor, tensors))
    return head + b"\0" * (-len(head) % ALIGNMENT) + values


def _tensor(tensor: Any) -> bytes:
    tensor = tensor if isinstance(tensor, dict) else {}
    shape = tensor.get("shape")
    shape = shape if isinstance(shape, list) else [shape]
    sizes = b"".join(struct.pack("<Q", _whole(size) & LONG) for size in shape)
    kind, offset = _whole(tensor.get("type")) & WORD, _whole(tensor.get("offset")) & LONG
    return _string(str(tensor.get("name"))) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def _typed(value: Any) -> bytes:
    kind = _kind(value)
    return struct.pack("<I", kind) + _bare(value, kind)


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return 4 if 0 <= value <= WORD else 11
    return 6 if isinstance(value, float) else ARRAY if isinstance(value, list) else STRING


def _bare(value: Any, kind: int) -> bytes:
    if kind == 7:
        return struct.pack("<?", bool(value))
    if kind == 4:
        return struct.pack("<I", _whole(value) & WORD)
    if kind == 11:
        return struct.pack("<Q", _whole(value) & LONG)
    if kind == 6:
        return struct.pack("<d", value)[:4] if abs(value) > 1e38 else struct.pack("<f", value)
    if kind == STRING:
        return _string(str(value))
    values = value if isinstance(value, list) else [value]
    inner = _kind(values[0]) if values else STRING
    return struct.pack("<IQ", inner, len(values)) + b"".join(_bare(one, inner) for one in values)


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _string(text: str) -> bytes:
    data = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data
