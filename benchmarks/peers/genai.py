"""Worker (see worker.py): decodes with onnxruntime-genai. `genai.py FOLDER THREADS`."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from worker import nats_of, serve

folder, threads = Path(sys.argv[1]), int(sys.argv[2])
config = json.loads((folder / "genai_config.json").read_text())
config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
(folder / "genai_config.json").write_text(json.dumps(config, indent=2))
model = genai.Model(str(folder))


def generator(length):
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    return genai.Generator(model, parameters)


def generate(prompt, new_tokens, stop=()):
    work = generator(len(prompt) + new_tokens)
    work.append_tokens(np.array(prompt, np.int32))
    work.generate_next_token()
    started, tokens = time.perf_counter(), [int(work.get_next_tokens()[0])]
    while len(tokens) < new_tokens and tokens[-1] not in stop:
        work.generate_next_token()
        tokens.append(int(work.get_next_tokens()[0]))
    return {"tokens": tokens, "tokens_per_second": (len(tokens) - 1) / (time.perf_counter() - started)}


def score(ids):
    work = generator(len(ids) + 1)
    work.append_tokens(np.array(ids, np.int32))
    logits = work.get_output("logits")[0, :-1]
    if len(logits) != len(ids) - 1:
        sys.exit(f"{folder}: its graph gives logits of {len(logits) + 1} tokens of {len(ids)}")
    return nats_of(logits, ids)


serve(generate, score)
