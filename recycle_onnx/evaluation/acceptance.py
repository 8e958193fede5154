"""How often the module's proposals are right, by place in a chain, in the model's text, answers or given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.decoding import strategies
from recycle_onnx.runtime.decoding.proposals import LookupProposer, ModuleProposer, Proposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model

OPENING = 16
"""Tokens of a document that the model is given to go on from."""
NAMES = {"own": "own text", "given": "given text", "answers": "answers"}
"""How tables call the texts that acceptance was counted in."""


class Tally:
    """The numbers of proposals that were tried and right at every place of a chain."""

    def __init__(self, longest: int) -> None:
        self.tried, self.right = [0] * longest, [0] * longest

    def count(self, tried: int, right: int) -> None:
        """Count a chain: its first `tried` places were compared, the first `right` of them were right."""
        for place in range(tried):
            self.tried[place] += 1
            self.right[place] += place < right


class Watched(Tally):
    """A proposer that counts how often another one's proposals were tried and right."""

    def __init__(self, inner: Proposer, longest: int) -> None:
        super().__init__(longest)
        self.inner = inner
        self._proposed = 0

    def propose(self, kept: list[int], position: int, room: int) -> list[int]:
        """Propose what the other proposer does, and count how its last proposals fared."""
        accepted = len(kept) - 1
        self.count(min(self._proposed, accepted + 1), accepted)
        proposals = self.inner.propose(kept, position, room)
        self._proposed = len(proposals)
        return proposals


@dataclass(frozen=True)
class Continued:
    """The outcome of a continuation: what proposals got right, its tokens, and the full runs it took."""

    tally: Tally
    new_tokens: int
    full_runs: int


def continued(
    model: Model,
    prompt: Sequence[int],
    proposer: Literal["module", "lookup"],
    *,
    chain: int,
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Continued:
    """Continue a prompt, to the text's end or for `new_tokens`, with chains of a proposer.

    Raises:
        InputError: a prompt that leaves no room, no module, or a number out of range.
    """
    if proposer == "module" and "verify" not in model.strategies:
        raise InputError(f"{model.bundle.folder} has no recyclable module; expected one, whose proposals are counted")
    ids = model.prompt_ids(prompt)
    sampling = GREEDY.updated(max_new_tokens=new_tokens, temperature=temperature, seed=seed).sampling
    decoder = model.decoder("verify" if proposer == "module" else "lookup")
    by_module = proposer == "module"
    inner = ModuleProposer(decoder, sampling, chain, 0.0) if by_module else LookupProposer(ids, sampling, chain)
    watched, limit, tokens = Watched(inner, chain), model.bundle.manifest.context_length - len(ids), 0
    for choice in strategies.verify(decoder, ids, sampling, min(new_tokens, limit), strategies.Counts(), watched):
        tokens += 1
        if choice.id in model.stop_ids:
            break
    return Continued(watched, tokens, decoder.work.full_runs)


def rates(runs: Sequence[Tally]) -> list[float]:
    """Return the acceptance by place, given that those before were right, as far as anything was tried there."""
    by_place: list[float] = []
    for place in range(len(runs[0].tried) if runs else 0):
        tried = sum(run.tried[place] for run in runs)
        if tried == 0:
            break
        by_place.append(sum(run.right[place] for run in runs) / tried)
    return by_place


@dataclass(frozen=True)
class Acceptance:
    """The acceptance at one temperature (0 is greedy), `by_place` in chains of the given length.

    A place counts where the places before it were right.

    `text` is `own` where the model went on from the openings itself, `given` where the documents went on, `answers`
    where it answered prompts.
    `proposals` is how many were tried at the first place; `tokens_per_full_run` is how many a full run made, on given
    text how many it would make at these rates.
    """

    text: Literal["own", "given", "answers"]
    temperature: float
    chain: int
    proposals: int
    by_place: list[float]
    tokens_per_full_run: float


def described(measured: Acceptance) -> str:
    """Say in words what an acceptance was counted in."""
    how = f"sampled at {measured.temperature:g}" if measured.temperature else "greedy"
    return f"{NAMES[measured.text]}, {how}"


def acceptance(
    model: Model,
    documents: Sequence[str],
    *,
    chain: int = 4,
    new_tokens: int = 64,
    temperature: float = 0.0,
    report: Progress = silent,
) -> Acceptance:
    """Continue the openings of `documents` and count."""
    openings = [model.encode(document)[:OPENING] for document in documents]
    return _continue(model, openings, "own", chain, new_tokens, temperature, report)


def acceptance_in_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    chain: int = 4,
    new_tokens: int = 64,
    temperature: float = 0.0,
    report: Progress = silent,
) -> Acceptance:
    """Answer the prompts, token ids each, to the end or for `new_tokens`, and count."""
    return _continue(model, prompts, "answers", chain, new_tokens, temperature, report)


def _continue(
    model: Model,
    prompts: Sequence[Sequence[int]],
    text: Literal["own", "answers"],
    chain: int,
    new_tokens: int,
    temperature: float,
    report: Progress,
) -> Acceptance:
    texts = []
    for index, prompt in enumerate(prompts):
        report(index, len(prompts), f"acceptance in its {NAMES[text]}, temperature {temperature:g}, chain {chain}")
        texts.append(
            continued(model, prompt, "module", chain=chain, new_tokens=new_tokens, temperature=temperature, seed=index)
        )
    report(len(prompts), len(prompts), "acceptance")
    tallies, full_runs = [one.tally for one in texts], sum(one.full_runs - 1 for one in texts)
    measured = sum(one.new_tokens - 1 for one in texts) / full_runs if full_runs else 0.0
    return Acceptance(text, temperature, chain, _first(tallies), rates(tallies), measured)


def acceptance_on_text(
    model: Model,
    documents: Sequence[str],
    *,
    chain: int = 4,
    new_tokens: int = 64,
    temperature: float = 0.0,
    report: Progress = silent,
) -> Acceptance:
    """Measure acceptance on the documents themselves: after every token the module proposes what follows.

    A proposal is right if the full model, having read the text so far, chooses it too (with the same noise, where the
    temperature is not 0). A later place of a chain counts where the text went on as the chain did.
    """
    runs = []
    for index, document in enumerate(documents):
        report(index, len(documents), f"acceptance in the given text, temperature {temperature:g}")
        ids = model.encode(document)[: min(OPENING + new_tokens, model.bundle.manifest.context_length)]
        runs.append(_read_along(model, ids, chain, Sampling(temperature, seed=index)))
    report(len(documents), len(documents), "acceptance")
    by_place = rates(runs)
    return Acceptance("given", temperature, chain, _first(runs), by_place, 1 + sum(accumulate(by_place, mul)))


def _read_along(model: Model, ids: list[int], chain: int, sampling: Sampling) -> Tally:
    """Walk through a text; propose a chain after every token, and compare it with the full model's choices."""
    decoder, tally = model.decoder("verify"), Tally(chain)
    if len(ids) < 2:
        return tally
    proposer = ModuleProposer(decoder, sampling, chain, 0.0)
    opening = min(OPENING, len(ids) - 1)
    logits = decoder.prefill(ids[:opening], len(ids))
    choices, chains = {opening: sampling.choose(logits[-1], opening)}, {}
    for place in range(opening, len(ids) - 1):
        chains[place + 1] = proposer.propose([ids[place]], place + 1, len(ids) - place - 1)
        choices[place + 1] = sampling.choose(decoder.full_step([ids[place]], keep=1)[-1], place + 1)
    for start, proposed in chains.items():
        right = [token == choices[start + place] for place, token in enumerate(proposed)]
        followed = [token == ids[start + place] for place, token in enumerate(proposed)]
        tried = 1 + sum(accumulate((a and b for a, b in zip(right, followed, strict=True)), min))
        tally.count(min(tried, len(proposed)), sum(accumulate(right, min)))
    return tally


def _first(runs: Sequence[Tally]) -> int:
    return sum(run.tried[0] for run in runs)
