"""A GGUF file in other types by llama.cpp's own quantizer, through F16: `requantize.py SOURCE.gguf FOLDER TYPE …`."""

import ctypes
import sys
from pathlib import Path

import llama_cpp

TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q4_k_s": 14, "q4_k_m": 15, "q6_k": 18}
"""llama.cpp's `llama_ftype`."""


def write(source: Path, target: Path, kind: str) -> None:
    """Write `target` as one that is whole or not there."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = TYPES[kind], True
    part = target.with_suffix(".part")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(settings)) != 0:
        sys.exit(f"{source}: llama.cpp cannot write it as {kind}")
    part.rename(target)


source, folder = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("f16", *sys.argv[3:]):
    if not (folder / f"{name}.gguf").exists():
        write(source if name == "f16" else folder / "f16.gguf", folder / f"{name}.gguf", name)
