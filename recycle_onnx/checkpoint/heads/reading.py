"""Someone else's head to a recyclable module: format, names, conventions, tables and draft vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.base_weights import HEAD, TABLE, BaseWeights
from recycle_onnx.checkpoint.draft_vocabulary import DraftFile
from recycle_onnx.checkpoint.heads import eagle, eagle3, medusa, mtp
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.heads.head_format import HeadFormat
from recycle_onnx.checkpoint.heads.held import HeldTensors
from recycle_onnx.checkpoint.heads.refused import refuse_others
from recycle_onnx.checkpoint.recycler import OWN_EMBEDDING, OWN_HEAD, RecyclerConfig, place_head
from recycle_onnx.checkpoint.weights import FLOAT_TYPES
from recycle_onnx.errors import InputError

FORMATS: tuple[HeadFormat, ...] = (
    mtp.MIMO, mtp.ERNIE, mtp.SPECULATORS, mtp.DEEPSEEK, eagle3.FORMAT, eagle.OF_SPECULATORS, eagle.FORMAT,
    medusa.INSIDE, medusa.FORMAT, medusa.OF_VLLM,
)  # fmt: skip
"""In the order in which they are looked for."""
PREFIXES = ("model.", "draft_model.", "medusa_heads.")
"""What files may put before all names of a head."""
FIRST_LAYER = ("midlayer.", "layers.0.")
"""SafeAILab's name of the only layer, and everybody else's."""
ALWAYS_UNUSED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
ROUNDING = 2.0**-7
"""Relative difference of two copies of a table, one of which was rounded to bfloat16."""
SMALLEST = 1e-6
"""What float16 may be off by where values are too small for its exponent."""
ROWS_AT_ONCE = 4096
MULTIPLIERS = ("embedding_scale", "residual_scale", "logit_scale")


@dataclass(frozen=True)
class Head:
    """A head as a module: its config but for the base, its tensors, and the tokens that it knows if not all."""

    format: HeadFormat
    config: RecyclerConfig
    tensors: HeldTensors
    draft_ids: list[int] | None

    def read_as(self, config: RecyclerConfig, tensors: Mapping[str, NDArray[Any]]) -> Head:
        """Return the head read otherwise, with the `tensors` that it lacked for that."""
        kind = next(iter(self.tensors.arrays.values())).dtype
        more = {name: array.astype(kind) for name, array in tensors.items()}
        return replace(self, config=config, tensors=HeldTensors({**self.tensors.arrays, **more}))


def read_head(folder: Path, weights: BaseWeights) -> Head:
    """Read the head in `folder` for the base with these `weights`.

    Raises:
        InputError: no head, a format that is not known, one that cannot be expressed, a head for another base, or
            damaged files; one line that says which.
    """
    files, base = HeadFiles.open(folder), weights.base
    form, names = _recognised(files, base)
    files = replace(files, names=names)
    _check_base(files, base)
    config = form.conventions(files, base)
    tensors = {name: files.weights.stored(stored) for name, stored in names.items() if _is_float(files, stored)}
    ids = _draft_ids(files, base, tensors)
    if ids is not None:
        config = replace(config, draft_vocabulary=DraftFile(len(ids)))
        tensors, ids = _ascending(tensors, ids)
    config, tensors = _settle_tables(config, tensors, weights)
    config = replace(config, trained_depth=config.places, read_from=_origin(form, files))
    _check(files, config, base, tensors)
    return Head(form, config, HeldTensors(tensors), ids)


def _origin(form: HeadFormat, files: HeadFiles) -> dict[str, Any]:
    """Return what is recorded of where a module comes from: the number of layers too, where others were not read."""
    layers = sum(re.fullmatch(form.layer, name) is not None for name in files.weights.names()) if form.layer else 1
    return {"format": form.name, "reference": form.source} | ({"layers": layers} if layers > 1 else {})


def _recognised(files: HeadFiles, base: BaseConfig) -> tuple[HeadFormat, dict[str, str]]:
    """Return the format, and the head's tensors by the names that they have in a module."""
    plain = {_plain(stored): stored for stored in sorted(files.weights.names())}
    for form in FORMATS:
        stored_names = {name: name for name in plain.values()} if form.inside else plain
        signs = [sign.format(layers=base.num_layers) for sign in form.signs]
        if all(any(name.startswith(sign) for name in stored_names) for sign in signs):
            return form, _mapped(form, stored_names, files, base)
    refuse_others(files, set(plain.values()))
    known = ", ".join(form.name for form in FORMATS)
    raise InputError(f"{files.folder}: not a head in a known format; expected one of: {known}")


def _plain(name: str) -> str:
    """Return a name without what some put before all of them, and with the only layer's usual name."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace(*FIRST_LAYER, 1) if name.startswith(FIRST_LAYER[0]) else name


def _mapped(form: HeadFormat, stored_names: Mapping[str, str], files: HeadFiles, base: BaseConfig) -> dict[str, str]:
    """Map a head's names to those of a module.

    Raises:
        InputError: a tensor that the format does not know, or that a module cannot have.
    """
    patterns = {pattern.format(layers=base.num_layers): name for pattern, name in form.tensors.items()}
    names: dict[str, str] = {}
    for name, stored in stored_names.items():
        pattern = next((pattern for pattern in patterns if name.startswith(pattern)), None)
        if ALWAYS_UNUSED.search(name):
            continue
        if pattern is not None:
            own = patterns[pattern] + name.removeprefix(pattern)
            if own in names:
                where = files.weights.where
                raise InputError(
                    f"{where}: tensors {names[own]!r} and {stored!r} are the same one; expected one of them"
                )
            names[own] = stored
        elif not form.inside and not name.startswith(form.unused):
            refuse_others(files, {stored})
            raise InputError(
                f"{files.weights.where}: tensor {stored!r} is not known in a head of the format {form.name}"
            )
    refuse_others(files, set(names.values()))
    return names


def _is_float(files: HeadFiles, stored: str) -> bool:
    kind = files.weights.stored_type(stored)
    if kind not in FLOAT_TYPES:
        raise InputError(
            f"{files.weights.where}: {stored} is stored as {kind}; expected one of {', '.join(FLOAT_TYPES)}"
        )
    return True


def _check_base(files: HeadFiles, base: BaseConfig) -> None:
    """Refuse a head whose config speaks of another base, and a base that heads are not made for."""
    values = files.layer_values
    for name in ("hidden_size", "vocab_size"):
        if (theirs := values.get(name)) not in (None, getattr(base, name)):
            raise InputError(
                f"{files.folder}: a head for another base: {name} {theirs!r} against {getattr(base, name)}"
            )
    odd = next((name for name in MULTIPLIERS if getattr(base, name) != 1), None)
    odd = odd or ("logit_softcap" if base.logit_softcap else None)
    odd = odd or ("learned positions" if base.position_offset is not None else None)
    if odd:
        raise InputError(
            f"{files.folder}: a head for a base of the family {base.model_type}, whose {odd} no format of heads "
            "speaks of; train a module for it: recycle-onnx attach BASE OUT"
        )


def _draft_ids(files: HeadFiles, base: BaseConfig, tensors: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """Return the tokens that the rows of the head's logits stand for; None where they are all of the base's.

    Raises:
        InputError: fewer rows than the base has tokens, and nothing that says which; or numbers out of range.
    """
    offsets, head = files.numbers("d2t"), tensors.get(OWN_HEAD)
    rows = None if head is None else len(head)
    if offsets is None:
        if rows not in (None, base.vocab_size):
            raise InputError(
                f"{files.weights.where}: the LM head has {rows} rows and the base {base.vocab_size} tokens, and there "
                "is no d2t that says which; fetch the whole file"
            )
        return None
    ids = np.arange(len(offsets)) + offsets
    right = len(ids) == len(set(ids.tolist())) and ids.min() >= 0 and ids.max() < base.vocab_size
    if not right or rows not in (None, len(ids)):
        raise InputError(
            f"{files.weights.where}: d2t lists {len(ids)} tokens up to {ids.max()} for {rows or len(ids)} rows; "
            f"expected as many different ones, below {base.vocab_size}"
        )
    kept = files.numbers("t2d")
    if kept is not None and not np.array_equal(np.flatnonzero(kept), np.sort(ids)):
        raise InputError(f"{files.weights.where}: t2d and d2t name different tokens; the file is damaged")
    return None if len(ids) == base.vocab_size and np.array_equal(ids, np.arange(len(ids))) else ids.tolist()


def _ascending(tensors: dict[str, NDArray[Any]], ids: list[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
    """Put the rows of the head's logits in the order of their tokens."""
    order = np.argsort(ids)
    if OWN_HEAD in tensors:
        tensors = {**tensors, OWN_HEAD: tensors[OWN_HEAD][order]}
    return tensors, np.asarray(ids)[order].tolist()


def _settle_tables(
    config: RecyclerConfig, tensors: dict[str, NDArray[Any]], weights: BaseWeights
) -> tuple[RecyclerConfig, dict[str, NDArray[Any]]]:
    """Decide by presence, shape and values which tables are the head's own: most files hold copies of the base's."""
    own = dict(tensors)
    base_head = TABLE if weights.base.tied_embeddings else HEAD
    heads = [OWN_HEAD] if config.join is not None else [place_head(place) for place in range(config.places)]
    for names, of_the_base, convention in (([OWN_EMBEDDING], TABLE, "embedding"), (heads, base_head, "lm_head")):
        tables = {name: own[name] for name in names if name in own}
        if not tables:
            continue
        whole = names == [OWN_EMBEDDING] or config.draft_vocabulary is None
        if whole and all(_is_copy(table, weights, of_the_base) for table in tables.values()):
            own = {name: tensor for name, tensor in own.items() if name not in tables}
        else:
            changed: dict[str, Any] = {convention: "own"}
            config = replace(config, **changed)
    return config, own


def _is_copy(table: NDArray[Any], weights: BaseWeights, name: str) -> bool:
    """Tell whether a table is the base's, but for rounding."""
    if table.shape != weights.shape(name):
        return False
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(table)))
        theirs, ours = table[rows].astype(np.float32), weights.float32(name, rows)
        if (np.abs(theirs - ours) > ROUNDING * np.abs(ours) + SMALLEST).any():
            return False
    return True


def _check(files: HeadFiles, config: RecyclerConfig, base: BaseConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Compare what is there with what the conventions imply.

    Raises:
        InputError: names the first tensor that is missing, too many, or of another shape.
    """
    config.check(str(files.where))
    config.check_base(base, str(files.where))
    shapes = config.tensor_shapes(base)
    for name, shape in shapes.items():
        stored = files.names.get(name, name)
        if name not in tensors:
            raise InputError(f"{files.weights.where}: tensor {stored!r} is missing, of shape {list(shape)}")
        if tensors[name].shape != shape:
            raise InputError(
                f"{files.weights.where}: {stored} has shape {list(tensors[name].shape)}; a head for this base has "
                f"{list(shape)}"
            )
    if extra := sorted(set(tensors) - set(shapes)):
        raise InputError(f"{files.weights.where}: tensor {files.names[extra[0]]!r} has no place in such a module")
