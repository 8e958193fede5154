"""Proposals that are right as often as one likes: what a module of that quality would give, at this one's cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.run import Run
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.decoding.strategies import Plan
from recycle_onnx.runtime.generation import Generation, Result
from recycle_onnx.runtime.model import Model


class ForcedScript(Sampling):
    """A chooser that pays for a greedy choice, and then says what the script says: token 1 or 2 in turns."""

    def choose(self, logits: NDArray[np.float32], position: int, vocabulary: NDArray[np.int64] | None = None) -> int:
        """Choose the script's token for `position`."""
        super().choose(logits, position, vocabulary)
        return 1 + position % 2


class ForcedProposer:
    """A proposer that runs the module on the script, and spoils its proposals.

    Each is right with probability `rate`.

    (Given that those before it in the chain were right.)
    """

    def __init__(self, decoder: Decoder, script: ForcedScript, chain: int, rate: float, seed: int) -> None:
        self.module, self.rate = ModuleProposer(decoder, script, chain, 0.0), rate
        self._generator = np.random.default_rng(seed)

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose as many tokens as the module does."""
        proposals = self.module.propose(kept, position, room)
        right = self._generator.random(len(proposals)) < self.rate
        return [token if hit else 0 for token, hit in zip(proposals, right, strict=True)]


def forced(model: Model, prompt: list[int], chain: int, rate: float, new_tokens: int, seed: int) -> Result:
    """Generate the script's text with `verify` and chains so often right; token ids become text as they always do."""
    decoder, script = model.decoder("verify"), ForcedScript()
    proposer = ForcedProposer(decoder, script, chain, rate, seed)
    run = Run(decoder, Plan.make("verify", chain, 0.0), prompt, script, new_tokens, proposer=proposer)
    generation = Generation(run, model.tokenizer, "no")
    for _ in generation:
        pass
    return generation.result
