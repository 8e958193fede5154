"""How an embedding base makes one vector of a text, as sentence-transformers writes it down beside the weights.

`modules.json` lists what the hidden states go through; of these a pooling has a folder of its own with a
`config.json`. (Its sources: sentence_transformers/models/Pooling.py.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.untrusted import check_inside, is_plain_name, parse_json, read_bytes

MODULES = "modules.json"
POOLING_FOLDER = "1_Pooling"
"""Its name in every folder that sentence-transformers writes."""
FLAG = "pooling_mode_"
POOLING_MODES = {"mean": "mean", "lasttoken": "last"}
"""Names of sentence-transformers, and ours; no other one suits a causal model that is served here."""
KINDS = ("Transformer", "Pooling", "Normalize")
"""Modules that are understood. A vector always gets the length 1, also where Normalize is not among them."""


def read_pooling(folder: Path) -> str | None:
    """Return the pooling of a base in `folder`, one of `contract.POOLINGS`; None where no file says one.

    Raises:
        InputError: a damaged file, or what cannot be done here: another pooling, or a layer behind it.
    """
    named = POOLING_FOLDER if (folder / POOLING_FOLDER / "config.json").exists() else None
    check_inside(folder / MODULES)
    if (folder / MODULES).exists():
        named = _pooling_folder(folder)
    if named is None:
        return None
    path = folder / named / "config.json"
    check_inside(path)
    mode = _mode(read_json(path))
    if mode in POOLING_MODES:
        return POOLING_MODES[mode]
    expected = " or ".join(POOLING_MODES)
    raise InputError(f"{path}: pooling {mode!r:.100} is not supported; expected {expected}")


def _pooling_folder(folder: Path) -> str | None:
    """Return the name of the folder with the pooling's config, if there is one."""
    path, pooling = folder / MODULES, None
    for module in _modules(path):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in KINDS:
            raise InputError(f"{path}: a module {kind!r:.100} is not supported; expected {', '.join(KINDS)}")
        if kind == "Pooling":
            pooling = module.get("path")
            if not is_plain_name(pooling):
                raise InputError(f"{path}: the pooling's path is {pooling!r:.100}; expected a folder's plain name")
    return pooling


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = parse_json(read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{path}: expected a JSON list of modules")
    return modules


def _mode(config: dict[str, Any]) -> str:
    """Return the name of the pooling, or of several joined by `+`: new files name it, older ones have a flag each."""
    named = config.get("pooling_mode")
    if named is not None:
        return "+".join(map(str, named)) if isinstance(named, list) else str(named)
    flags = [name.removeprefix(FLAG) for name, value in config.items() if name.startswith(FLAG) and value is True]
    return "+".join(flag.removesuffix("_tokens").removesuffix("_token") for flag in flags) or "none"
