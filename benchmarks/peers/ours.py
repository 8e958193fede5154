"""Worker (see worker.py): decodes with recycle-onnx. `ours.py BUNDLE THREADS`.

Requests name a `strategy`. With `chain` and `rate` the module's proposals are right with that probability, at the
module's real cost. A request to score is answered for `alternate` too (`alternate_nats`): the mean of both orders.
"""

import sys
import time

from worker import serve

import recycle_onnx
from recycle_onnx.bench.forced import forced
from recycle_onnx.evaluation.alternating import verdict
from recycle_onnx.evaluation.scoring import score as both_halves

model = recycle_onnx.load(sys.argv[1], threads=int(sys.argv[2]), fixed_threads=True)
decoder = model.decoder("full")


def generate(prompt, new_tokens, strategy, stop=(), chain=0, rate=0.0, seed=0):
    settings = {"strategy": strategy, "max_new_tokens": new_tokens, "stop_ids": tuple(stop), "temperature": 0.0}
    if chain:
        result = forced(model, model.prompt_ids(prompt), chain, rate, new_tokens, seed)
    else:
        result = model.generate(prompt, **settings)
    return {"tokens": result.tokens, "tokens_per_second": result.stats.tokens_per_second}


def score(ids, first=1):
    scores = both_halves(model, ids, first)
    greedy = scores.best.tolist() == ids[first:]
    answer = {"nats": float(scores.nats.sum()), "tokens": len(scores.nats), "greedy": greedy}
    if scores.module is not None:
        orders = [verdict(scores, ids[first:], order).log_probability for order in ("full_first", "module_first")]
        answer["alternate_nats"] = -sum(orders) / 2
    return answer


def step(behind, step):
    if decoder.full.length != behind:
        decoder.keep(0)
        decoder.prefill([1 + token % 1000 for token in range(behind)])
    started = time.perf_counter()
    decoder.full_step([1] * step, keep=step)
    seconds = time.perf_counter() - started
    decoder.keep(behind)
    return {"ms": 1e3 * seconds}


serve(generate, score, step)
