"""Where a base comes from: a Hugging Face folder, a GGUF file or a model on the Hugging Face hub.

Whatever was named, everything after sees an ordinary Hugging Face folder. A folder that was made here holds
`source.json`, which says what it was made from.
"""

from recycle_onnx.checkpoint.sources.source import attached_to, folder_of

__all__ = ["attached_to", "folder_of"]
