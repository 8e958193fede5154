"""Worker: decodes with llama.cpp. `llama.py MODEL.gguf CONTEXT NEW_TOKENS THREADS`, one run a line of input.

llama.cpp's C functions through llama-cpp-python: one token a batch, greedy by numpy, as the other workers do.
"""

import ctypes
import sys
import time

import llama_cpp
import numpy as np

path = sys.argv[1]
context, new_tokens, threads = map(int, sys.argv[2:5])
silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C code calls it later
llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
settings = llama_cpp.llama_context_default_params()
settings.n_ctx, settings.n_batch = context + new_tokens + 8, max(512, context)
settings.n_threads = settings.n_threads_batch = threads
state = llama_cpp.llama_init_from_model(model, settings)
vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


def read(tokens: list[int]) -> int:
    """Read tokens and give the most likely next one."""
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(state, llama_cpp.llama_batch_get_one(ids, len(tokens))) != 0:
        sys.exit("llama_decode failed")
    logits = llama_cpp.llama_get_logits_ith(state, -1)
    return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())


print("ready", flush=True)
for _ in sys.stdin:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
    token = read([1 + index % 1000 for index in range(context)])
    started = time.perf_counter()
    for _ in range(new_tokens - 1):
        token = read([token])
    print((new_tokens - 1) / (time.perf_counter() - started), flush=True)
