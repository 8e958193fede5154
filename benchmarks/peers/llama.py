"""Worker (see worker.py): decodes with llama.cpp. `llama.py MODEL.gguf THREADS [CONTEXT] [f16|q8_0]`.

With a type of cache named, flash attention is on; left out it is llama.cpp's own choice.

llama.cpp's C functions through llama-cpp-python, greedy by numpy, as the other workers do. Requests may ask for
speculation, checked in one batch of the last token and the proposals:

- `lookup`: so many tokens by llama-cpp-python's own prompt lookup (LlamaPromptLookupDecoding);
- `chain` and `rate`: speculation at its best, that many proposals that cost nothing, each right with that probability.
"""

import ctypes
import random
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from worker import nats_of, serve

BATCH = 512
CACHE_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
path, threads = sys.argv[1], int(sys.argv[2])
context = int(sys.argv[3]) if len(sys.argv) > 3 else 2048
silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C code calls it later
llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
settings = llama_cpp.llama_context_default_params()
settings.n_ctx, settings.n_batch = context, BATCH
if len(sys.argv) > 4:
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    settings.type_k = settings.type_v = CACHE_TYPES[sys.argv[4]]
settings.n_threads = settings.n_threads_batch = threads
state = llama_cpp.llama_init_from_model(model, settings)
memory = llama_cpp.llama_get_memory(state)
vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
batch = llama_cpp.llama_batch_init(BATCH, 0, 1)


def logits(tokens, position, keep):
    """Read at most BATCH tokens from `position` on; give the logits [keep, V] after each of the last `keep`."""
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, position + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = index >= len(tokens) - keep
    if llama_cpp.llama_decode(state, batch) != 0:
        sys.exit("llama_decode failed")
    rows = (llama_cpp.llama_get_logits_ith(state, index) for index in range(len(tokens) - keep, len(tokens)))
    return [np.ctypeslib.as_array(row, shape=(vocabulary,)) for row in rows]


def read(tokens, position, keep):
    """Return the most likely next token after each of the last `keep`."""
    return [int(row.argmax()) for row in logits(tokens, position, keep)]


def forced(count, rate, seed):
    """Proposals that are right by chance: a function of the text that the model is then said to go on with."""
    draws = random.Random(seed)
    return lambda text: [1 + (len(text) + index) % 2 if draws.random() < rate else 0 for index in range(count)]


def generate(prompt, new_tokens, stop=(), lookup=0, chain=0, rate=0.0, seed=0):
    llama_cpp.llama_memory_clear(memory, True)
    for start in range(0, len(prompt), BATCH):
        [first] = read(prompt[start : start + BATCH], start, 1)
    propose = forced(chain, rate, seed) if chain else None
    if lookup:
        find = LlamaPromptLookupDecoding(num_pred_tokens=lookup)
        propose = lambda text: find(np.array(text, np.intc)).tolist()  # noqa: E731
    text, started = [*prompt, first], time.perf_counter()
    end = len(prompt) + new_tokens
    while len(text) < end and text[-1] not in stop:
        position = len(text) - 1
        proposals = propose(text)[: end - len(text) - 1] if propose else []
        choices = read([text[-1], *proposals], position, 1 + len(proposals))
        if chain:  # pays for the choice, and says what the script says
            choices = [1 + (position + 1 + index) % 2 for index in range(len(choices))]
        right = next((i for i, token in enumerate(proposals) if token != choices[i]), len(proposals))
        if right < len(proposals):
            llama_cpp.llama_memory_seq_rm(memory, 0, position + 1 + right, -1)
        kept = choices[: right + 1]
        stops = [place for place, token in enumerate(kept) if token in stop]
        text += kept[: stops[0] + 1] if stops else kept
    tokens = text[len(prompt) :]
    return {"tokens": tokens, "tokens_per_second": (len(tokens) - 1) / (time.perf_counter() - started)}


def score(ids, first=1):
    llama_cpp.llama_memory_clear(memory, True)
    rows = logits(ids[:-1], 0, len(ids) - first)
    greedy = all(int(row.argmax()) == token for row, token in zip(rows, ids[first:], strict=True))
    return {**nats_of(rows, ids[first - 1 :]), "greedy": greedy}


def step(behind, step):
    if llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1 != behind:
        llama_cpp.llama_memory_clear(memory, True)
        for start in range(0, behind, BATCH):
            read([1 + token % 1000 for token in range(start, min(behind, start + BATCH))], start, 1)
    started = time.perf_counter()
    read([1] * step, behind, step)
    seconds = time.perf_counter() - started
    llama_cpp.llama_memory_seq_rm(memory, 0, behind, -1)
    return {"ms": 1e3 * seconds}


serve(generate, score, step)
