"""Worker: decodes with llama.cpp. `llama.py MODEL.gguf CONTEXT NEW_TOKENS THREADS [CHAIN RATE]`, a run a line of input.

llama.cpp's C functions through llama-cpp-python: one token a batch, greedy by numpy, as the other workers do. With
CHAIN and RATE it is speculation at its best: proposals that cost nothing, each right with probability RATE, checked in
one batch of 1 + CHAIN tokens.
"""

import ctypes
import random
import sys
import time

import llama_cpp
import numpy as np

path = sys.argv[1]
context, new_tokens, threads = map(int, sys.argv[2:5])
chain, rate = (int(sys.argv[5]), float(sys.argv[6])) if len(sys.argv) > 5 else (0, 0.0)
silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C code calls it later
llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
settings = llama_cpp.llama_context_default_params()
settings.n_ctx, settings.n_batch = context + new_tokens + chain + 8, max(512, context)
settings.n_threads = settings.n_threads_batch = threads
state = llama_cpp.llama_init_from_model(model, settings)
memory = llama_cpp.llama_get_memory(state)
vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
batch = llama_cpp.llama_batch_init(max(512, context), 0, 1)


def read(tokens: list[int], position: int, keep: int) -> list[int]:
    """Read tokens from `position` on; give the most likely next one after each of the last `keep`."""
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, position + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = index >= len(tokens) - keep
    if llama_cpp.llama_decode(state, batch) != 0:
        sys.exit("llama_decode failed")
    rows = (llama_cpp.llama_get_logits_ith(state, index) for index in range(len(tokens) - keep, len(tokens)))
    return [int(np.ctypeslib.as_array(row, shape=(vocabulary,)).argmax()) for row in rows]


def plain(token: int) -> None:
    """One token a batch."""
    for position in range(context, context + new_tokens - 1):
        [token] = read([token], position, 1)


def speculative(seed: int) -> None:
    """Batches of the last token and the proposals; what follows the first wrong one is removed from the cache."""
    draws = random.Random(seed)
    position = context
    while position < context + new_tokens - 1:
        room = min(chain, context + new_tokens - 2 - position)
        read([1 + (position + index) % 2 for index in range(1 + room)], position, 1 + room)
        right = next((index for index in range(room) if draws.random() >= rate), room)
        position += 1 + right
        if right < room:
            llama_cpp.llama_memory_seq_rm(memory, 0, position, -1)


print("ready", flush=True)
for count, _ in enumerate(sys.stdin):
    llama_cpp.llama_memory_clear(memory, True)
    [first] = read([1 + index % 1000 for index in range(context)], 0, 1)
    started = time.perf_counter()
    if chain:
        speculative(count)
    else:
        plain(first)
    print((new_tokens - 1) / (time.perf_counter() - started), flush=True)
