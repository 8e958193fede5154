"""What a manifest may say: kinds, ranges and names of everything in `recycle.json`, before any of it is used."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from recycle_onnx.contract import POOLINGS, Kind
from recycle_onnx.errors import InputError
from recycle_onnx.limits import within
from recycle_onnx.untrusted import is_plain_name

KINDS: tuple[Kind, ...] = ("full", "recycler")
"""The graphs that a bundle may have; `full` it must have."""
ENDINGS = (".onnx", ".data", ".json", ".jinja")
"""Of a bundle's files."""
FLOAT_TYPES = ("float32", "float16")
BASE_SIZES = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
              "context_length")  # fmt: skip
GRAPH_SIZES = ("num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size")
TEXTS = ("flavour", "precision", "default_strategy")
OBJECTS = ("recycler", "quantization", "provenance")
MOST_BYTES = 1 << 50
"""Of a file: a petabyte."""
MOST_TAPS = 64
"""More hidden states side by side than any base has layers worth reading."""
SHA256 = re.compile("[0-9a-f]{64}")
"""In lower case, as it is written: a digest is compared letter by letter."""


def check_version(version: object, known: str, path: Path) -> None:
    """Refuse another major version than that of `known`.

    Raises:
        InputError: it is, or is none.
    """
    text = str(version)
    if text.split(".")[0] != known.split(".")[0]:
        raise InputError(f"{path}: bundle format {text:.20} is not known; this version reads {known}: upgrade it")


def check_manifest(raw: dict[str, Any]) -> None:
    """Check every field that this version reads.

    Raises:
        KeyError: a required field is missing.
        ValueError: a field is of another kind, out of range, or contradicts another one.
    """
    base, graphs, files = (_object(name, raw[name]) for name in ("base", "graphs", "files"))
    for name in BASE_SIZES:
        within(f"{name}", base[name])
    _check_kind("base.model_type", base["model_type"], str)
    _check_kind("base.tied_embeddings", base["tied_embeddings"], bool)
    for name in TEXTS:
        _check_kind(name, raw.get(name, ""), str)
    if (pooling := raw.get("pooling")) not in (None, *POOLINGS):
        raise ValueError(f"pooling is {pooling!r:.100}; expected null or one of {', '.join(POOLINGS)}")
    for name in OBJECTS:
        _check_kind(name, raw.get(name), dict if name == "provenance" and name in raw else dict | None)
    _check_graphs(graphs)
    for name, file in files.items():
        _check_file(name, _object(f"files.{name:.100}", file))
    _check_module(raw.get("recycler"), base)
    _check_draft(raw.get("draft_vocabulary"), graphs)


def _check_graphs(graphs: dict[str, Any]) -> None:
    if "full" not in graphs or not set(graphs) <= set(KINDS):
        raise ValueError(f"graphs has {', '.join(graphs) or 'nothing'}; expected full, or full and recycler")
    for kind, spec in graphs.items():
        spec = _object(f"graphs.{kind}", spec)
        for name in (*GRAPH_SIZES, "places"):
            least = 0 if name == "num_layers" and kind == "recycler" else 1
            try:
                within(name, spec.get(name, 1) if name == "places" else spec[name], least)
            except ValueError as error:
                raise ValueError(f"graphs.{kind}.{error}") from error
        if spec["kind"] != kind:
            raise ValueError(f"graphs.{kind}.kind is {spec['kind']!r:.100}")
        if spec.get("float_type", FLOAT_TYPES[0]) not in FLOAT_TYPES:
            raise ValueError(f"graphs.{kind}.float_type is {spec['float_type']!r:.100}; expected float32 or float16")
        if spec.get("places", 1) > 1 and spec["num_layers"]:
            raise ValueError(f"graphs.{kind}.places is {spec['places']} with layers; expected 1")
        if spec.get("cache_type") not in (None, "int8"):
            raise ValueError(f"graphs.{kind}.cache_type is {spec['cache_type']!r:.100}; expected int8, or none")
        reach = spec.get("reach")
        if reach is not None and (type(reach) is not int or reach < 1):
            raise ValueError(f"graphs.{kind}.reach is {reach!r:.100}; expected at least 1 row, or none")
        _check_windows(kind, spec)
        taps = spec.get("taps", ["final_post"])
        if not isinstance(taps, list) or not 0 < len(taps) <= MOST_TAPS or not all(isinstance(t, str) for t in taps):
            raise ValueError(f"graphs.{kind}.taps is {taps!r:.100}; expected names of hidden states")


def _check_windows(kind: str, spec: dict[str, Any]) -> None:
    windows, layers = spec.get("windows", []), spec["num_layers"]
    right = isinstance(windows, list) and all(row is None or (type(row) is int and row > 0) for row in windows)
    if not right or len(windows) not in (0, layers):
        raise ValueError(f"graphs.{kind}.windows is {windows!r:.100}; expected rows for each of {layers} layers")


def _check_file(name: str, file: dict[str, Any]) -> None:
    if not is_plain_name(name) or not name.endswith(ENDINGS):
        raise ValueError(f"files names {name!r:.100}; expected plain names that end in {', '.join(ENDINGS)}")
    size, digest = file["bytes"], file["sha256"]
    if type(size) is not int or not 0 <= size <= MOST_BYTES:
        raise ValueError(f"files.{name}.bytes is {size!r:.100}; expected a number of bytes")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise ValueError(f"files.{name}.sha256 is {digest!r:.100}; expected 64 hexadecimal digits")


def _check_module(recycler: dict[str, Any] | None, base: dict[str, Any]) -> None:
    for about, where in ((base, "base"), (recycler or {}, "recycler")):
        for name in ("parameters", "trained_depth"):
            value = about.get(name, 0)
            if type(value) is not int or value < 0:
                raise ValueError(f"{where}.{name} is {value!r:.100}; expected a whole number")


def _check_draft(ids: Any, graphs: dict[str, Any]) -> None:
    """Check that ids are tokens of the full model, as many as the module has logits."""
    if ids is None:
        if "recycler" in graphs and graphs["recycler"]["vocab_size"] != graphs["full"]["vocab_size"]:
            raise ValueError("the module has another vocabulary than the full model, and no draft_vocabulary")
        return
    if "recycler" not in graphs:
        raise ValueError("there is a draft_vocabulary, and no module to use it")
    rows, most = graphs["recycler"]["vocab_size"], graphs["full"]["vocab_size"]
    right = isinstance(ids, list) and all(type(token) is int and 0 <= token < most for token in ids)
    if right and len(ids) == rows and all(low < high for low, high in pairwise(ids)):
        return
    raise ValueError(f"draft_vocabulary is {ids!r:.60}; expected {rows} ascending token ids below {most}")


def _object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.100}; expected an object")
    return value


def _check_kind(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r:.100}; expected {getattr(kind, '__name__', 'an object')}")
