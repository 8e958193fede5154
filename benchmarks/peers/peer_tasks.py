"""A worker as a model of lm-evaluation-harness: the prompts, tokens and metrics of our bundles, its own likelihoods."""

from __future__ import annotations

from worker import Worker

from recycle_onnx.evaluation.alternating import Decoding, Verdict
from recycle_onnx.evaluation.harness import RecycleLM
from recycle_onnx.runtime.model import Model


class PeerLM(RecycleLM):
    """What a `worker` says of each continuation, with the tokenizer of `model`, a bundle of the same base.

    A text and its continuation have at most 512 tokens, which llama.cpp reads at once.
    """

    def __init__(self, model: Model, worker: Worker) -> None:
        super().__init__(model)
        self._worker = worker

    def _judge(self, ids: list[int], first: int) -> dict[Decoding, Verdict]:
        answer = self._worker.ask(score=ids, first=first)
        return {"full": Verdict(-answer["nats"], answer["greedy"], 0)}
