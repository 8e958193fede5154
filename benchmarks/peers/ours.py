"""Worker (see worker.py): decodes with recycle-onnx. `ours.py BUNDLE THREADS`.

Requests name a `strategy`. With `chain` and `rate` the module's proposals are right with that probability, at the
module's real cost. A request to score is answered for `alternate` too (`alternate_nats`): the mean of both orders.
"""

import sys

from worker import serve

import recycle_onnx
from recycle_onnx.bench.forced import ForcedProposer, Script
from recycle_onnx.evaluation.alternating import verdict
from recycle_onnx.evaluation.scoring import score as both_halves

model = recycle_onnx.load(sys.argv[1], threads=int(sys.argv[2]))


def generate(prompt, new_tokens, strategy, stop=(), chain=0, rate=0.0, seed=0):
    settings = {"strategy": strategy, "max_new_tokens": new_tokens, "stop_ids": tuple(stop), "temperature": 0.0}
    generation = model.stream(prompt, **settings)
    if chain:
        generation.sampling = script = Script()
        generation.proposer = ForcedProposer(generation.decoder, script, chain, rate, seed)
    for _ in generation:
        pass
    stats = generation.result.stats
    return {"tokens": generation.result.tokens, "tokens_per_second": stats.tokens_per_second}


def score(ids):
    found = both_halves(model, ids)
    answer = {"nats": float(found.nats.sum()), "tokens": len(found.nats)}
    if found.module is not None:
        orders = [verdict(found, ids[1:], order).log_probability for order in ("full_first", "module_first")]
        answer["alternate_nats"] = -sum(orders) / 2
    return answer


serve(generate, score)
