"""A checkpoint on disk: a base in Hugging Face layout and, beside it, a recyclable module.

Read by the exporter, written by `attach` and by training. Needs no torch.
"""

from recycle_onnx.checkpoint.attach import attach
from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.draft_vocabulary import DraftVocabulary
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.fresh import create
from recycle_onnx.checkpoint.plain import plain_llama
from recycle_onnx.checkpoint.recycler import BaseReference, RecyclerConfig

__all__ = [
    "BaseConfig", "BaseReference", "Checkpoint", "DraftVocabulary", "RecyclerConfig", "attach", "create", "plain_llama",
]  # fmt: skip
