"""Where a base comes from: a Hugging Face folder, a GGUF file or a model on the Hugging Face hub.

Such a folder, file or model is the base's source, and nothing else is called so: an export goes from a checkpoint to
a bundle, quantizing from the original bundle to another one, and tokens come from a proposer.

Whatever was named, everything after sees an ordinary Hugging Face folder. A folder that was made here holds
`source.json`, which says what it was made from.
"""

from recycle_onnx.checkpoint.sources.source import NamedBase, attached_to, folder_of

__all__ = ["NamedBase", "attached_to", "folder_of"]
