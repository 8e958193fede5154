"""Worker: decodes with recycle-onnx. `ours.py BUNDLE STRATEGY CONTEXT NEW_TOKENS THREADS`, one run a line of input."""

import sys

import recycle_onnx

bundle, strategy = sys.argv[1:3]
context, new_tokens, threads = map(int, sys.argv[3:6])
model = recycle_onnx.load(bundle, threads=threads)
model.stop_ids = frozenset()
prompt = [1 + index % 1000 for index in range(context)]
print("ready", flush=True)
for _ in sys.stdin:
    result = model.generate(prompt, strategy=strategy, max_new_tokens=new_tokens)
    print(result.stats.tokens_per_second, flush=True)
