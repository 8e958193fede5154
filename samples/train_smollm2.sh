#!/bin/sh
# How a module like the one in samples/smollm2-135m is made: run it from the repository's root, with
# `pip install -e ".[train,export,gguf]"`. After Ctrl-C run it again: it goes on where it was.
# The module there was trained in three rounds, because its text and its optimizer came later; its
# card lists them. This does the same work in one, some two hours on two cores.
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
    recycle-onnx train "$checkpoint" --own-tokens 1835008 "$@"
    touch "$work/$name"
}

python samples/fetch_base.py "$work/base.gguf"
test -d "$checkpoint" || recycle-onnx attach "$work/base.gguf" "$checkpoint" --layers 1

# The base writes conversations, and the module learns from what it said on the way.
phase first --draft-vocab 8192 --depth 1 --minutes 60
# Then chains of three, from where the first training ended.
phase second --depth 3 --lr 5e-3 --minutes 15

recycle-onnx publish "$checkpoint" samples/smollm2-135m --licence apache-2.0 \
    --base-model HuggingFaceTB/SmolLM2-135M-Instruct --force
