"""A checkpoint on disk: a base in Hugging Face layout and, beside it, a recyclable module.

Read by the exporter, written by `attach` and by training. `publish` takes the module out, and `join` puts it beside
another copy of the base. Needs no torch.
"""

from recycle_onnx.checkpoint.attach import NewModule, attach
from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.draft_vocabulary import DraftVocabulary
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.fresh import create
from recycle_onnx.checkpoint.identity import BaseReference
from recycle_onnx.checkpoint.join import Joined, join
from recycle_onnx.checkpoint.module import Module
from recycle_onnx.checkpoint.plain import PlainLlama
from recycle_onnx.checkpoint.publish import publish
from recycle_onnx.checkpoint.recycler import RecyclerConfig

__all__ = [
    "BaseConfig", "BaseReference", "Checkpoint", "DraftVocabulary", "Joined", "Module", "NewModule", "PlainLlama",
    "RecyclerConfig", "attach", "create", "join", "publish",
]  # fmt: skip
