"""A Llama-type Hugging Face folder to GGUF with Q4_0 weights and no tokenizer: `write_gguf.py FOLDER OUT.gguf`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.gguf_writer import write_gguf


def kind_of(name: str) -> str:
    """As llama.cpp's own recipe does, the output stays at a higher precision than the rest."""
    return "Q8_0" if name == "lm_head.weight" else "Q4_0"


if __name__ == "__main__":
    write_gguf(Path(sys.argv[2]), Path(sys.argv[1]), kind_of, pre=None)
