"""Worker: decodes with recycle-onnx. `ours.py BUNDLE STRATEGY CONTEXT NEW_TOKENS THREADS [CHAIN RATE]`, a run a line.

With CHAIN and RATE the module's proposals are right with probability RATE, at the module's real cost.
"""

import sys

import recycle_onnx
from recycle_onnx.bench.forced import ForcedProposer, Script

bundle, strategy = sys.argv[1:3]
context, new_tokens, threads = map(int, sys.argv[3:6])
model = recycle_onnx.load(bundle, threads=threads)
model.stop_ids = frozenset()
prompt = [1 + index % 1000 for index in range(context)]
print("ready", flush=True)
for count, _ in enumerate(sys.stdin):
    generation = model.stream(prompt, strategy=strategy, max_new_tokens=new_tokens)
    if len(sys.argv) > 6:
        generation.sampling = script = Script()
        chain, rate = int(sys.argv[6]), float(sys.argv[7])
        generation.proposer = ForcedProposer(generation.decoder, script, chain, rate, seed=count)
    for _ in generation:
        pass
    print(generation.result.stats.tokens_per_second, flush=True)
