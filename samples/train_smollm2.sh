#!/bin/sh
# How the module in samples/smollm2-135m was made: run it from the repository's root, with
# `pip install -e ".[train,export,gguf]"`. After Ctrl-C run it again: it goes on where it was.
set -eu
work=${1:-smollm2-module}
checkpoint=$work/checkpoint
mkdir -p "$work"

# One training of two: nothing where it has ended, and the rest of it where it was interrupted.
phase() {
    name=$1
    shift
    test -e "$work/$name" && return
    test -e "$checkpoint/training.pt" && set -- "$@" --resume
    recycle-onnx train "$checkpoint" --own-tokens 917504 "$@"
    touch "$work/$name"
}

python samples/fetch_base.py "$work/base.gguf"
test -d "$checkpoint" || recycle-onnx attach "$work/base.gguf" "$checkpoint" --layers 1

# The base writes conversations, reads them once, and the module learns from what it said.
phase first --draft-vocab 8192 --depth 1 --lr 1e-3 --minutes 15
# Then chains of three, from where the first training ended.
phase second --depth 3 --lr 3e-4 --minutes 8

recycle-onnx publish "$checkpoint" samples/smollm2-135m --licence apache-2.0 \
    --base-model HuggingFaceTB/SmolLM2-135M-Instruct --force
