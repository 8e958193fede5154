"""What a format of heads states: how its files are recognised, what they call the tensors, and its conventions.

A head is what others publish to guess several tokens ahead: an EAGLE head, a layer inside a checkpoint that predicts
the token after next, or Medusa's. `reading.py` makes a recyclable module of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.heads.files import HeadFiles
from recycle_onnx.checkpoint.recycler import RecyclerConfig


@dataclass(frozen=True)
class HeadFormat:
    """A format of heads, by the names of its tensors.

    `signs` are beginnings of names, of which any file in this format has each. `tensors` maps beginnings of names in
    the files to those of the module's tensors, the first that fits first; `{layers}` stands for the number of the
    base's layers. `inside`: the head lies in a whole checkpoint, whose other tensors are not its business. `unused` are
    beginnings of names that say nothing more. `layer` is a pattern for a name that each layer of the head has, where a
    checkpoint may have several, of which the first is read. `conventions` makes the module's config, but for its base.
    """

    name: str
    signs: tuple[str, ...]
    tensors: Mapping[str, str]
    conventions: Callable[[HeadFiles, BaseConfig], RecyclerConfig]
    inside: bool = False
    unused: tuple[str, ...] = ()
    layer: str = ""
    source: str = ""
