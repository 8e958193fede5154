"""Load a bundle and continue a text: python samples/minimal.py BUNDLE PROMPT."""

import sys

import recycle_onnx

with recycle_onnx.load(sys.argv[1]) as model:
    for token in model.stream(sys.argv[2], max_new_tokens=60):
        print(token.text, end="", flush=True)
