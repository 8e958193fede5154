"""Heads that others publish, and how they become recyclable modules: a small file of data for each format."""

from recycle_onnx.checkpoint.heads.attaching import attach_head
from recycle_onnx.checkpoint.heads.files import head_folder
from recycle_onnx.checkpoint.heads.reading import FORMATS, Head, read_head

__all__ = ["FORMATS", "Head", "attach_head", "head_folder", "read_head"]
