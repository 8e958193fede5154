#!/bin/sh
# How the module in samples/smollm2-135m was made: run it from the repository's root, with
# `pip install -e ".[train,export,gguf]"`. Ctrl-C at any time; run it again, and it goes on.
set -eu
work=${1:-smollm2-module}
mkdir -p "$work"

python samples/fetch_base.py "$work/base.gguf"
test -d "$work/checkpoint" || recycle-onnx attach "$work/base.gguf" "$work/checkpoint" --layers 1

# The base writes conversations, reads them once, and the module learns from what it said.
recycle-onnx train "$work/checkpoint" --own-tokens 917504 --draft-vocab 8192 \
    --depth 1 --lr 1e-3 --minutes 15
# Then chains of three, from where the first training ended.
recycle-onnx train "$work/checkpoint" --own-tokens 917504 --depth 3 --lr 3e-4 --minutes 8

recycle-onnx publish "$work/checkpoint" samples/smollm2-135m --licence apache-2.0 \
    --base-model HuggingFaceTB/SmolLM2-135M-Instruct --force
