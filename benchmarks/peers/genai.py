"""Worker: decodes with onnxruntime-genai. `genai.py FOLDER CONTEXT NEW_TOKENS THREADS`, one run a line of input."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

folder = Path(sys.argv[1])
context, new_tokens, threads = map(int, sys.argv[2:5])
config = json.loads((folder / "genai_config.json").read_text())
config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
(folder / "genai_config.json").write_text(json.dumps(config, indent=2))
model = genai.Model(str(folder))
prompt = np.array([1 + index % 1000 for index in range(context)], np.int32)
print("ready", flush=True)
for _ in sys.stdin:
    parameters = genai.GeneratorParams(model)
    length = context + new_tokens
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    generator.generate_next_token()
    started = time.perf_counter()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    print((new_tokens - 1) / (time.perf_counter() - started), flush=True)
