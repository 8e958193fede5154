"""The settings of a generation, each declared once.

Checks, options of the command line, lines of `batch`, fields of the server's requests and the table in
docs/generation.md all follow from `Settings`. A new setting is a field here, its keyword in `Keywords`, and its effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypedDict

from recycle_onnx.declaration import declared, setting
from recycle_onnx.errors import InputError
from recycle_onnx.kinds import Biases, FrozenBiases, Name, Number, Strings, TokenIds

STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
"""In the order that `--help` and the server's schema list them: the default first."""
LONGEST_CHAINS = {"auto": 4, "verify": 15, "lookup": 15}
"""Most proposals in a cycle, for strategies that have chains: with the token before, a run of 16 rows has room."""
LONGEST_CHAIN = max(LONGEST_CHAINS.values())
CONFIDENT = ("auto", "verify")
"""Strategies that know `min_confidence`."""
MOST_LOGPROBS = 20
"""As many as OpenAI's API allows; each is looked up and decoded for every token."""
MOST_BIAS = 1e9
"""Far beyond any logit: a larger one decides nothing that this one does not."""
TO_THE_END = -1
"""The `max_new_tokens` of a text that only its own end or the context's ends; llama.cpp and LM Studio write it so."""
ALIASES = {"max_tokens": "max_new_tokens"}
"""Other names of settings, which are taken as well: what all neighbours call it."""
FOREIGN = {
    "max_completion_tokens": "max_new_tokens", "max_length": "max_new_tokens", "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens", "do_sample": "temperature", "repeat_penalty": "repetition_penalty",
    "eos_token_id": "stop_ids", "stop_strings": "stop", "stop_sequences": "stop",
}  # fmt: skip
"""What OpenAI, transformers, llama.cpp and Ollama call some settings: not taken, but understood, to name ours."""
PENALTY = Number(least=-2, most=2, notes={0: "none"})
COUNT = Number(least=0, whole=True)
SEED_64 = Number(least=-(2**63), most=2**63 - 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that are plain data."""

    max_new_tokens: int = setting(
        512, Number(least=1, whole=True, besides={TO_THE_END: "the end of the context"}),
        "Most new tokens; -1 goes on to the end of the context.",
        origin="transformers", in_file=True,
    )  # fmt: skip
    min_new_tokens: int = setting(
        0, COUNT, "No token id that ends the text comes before so many tokens. Stop strings end it at any time.",
        origin="transformers", in_file=True,
    )  # fmt: skip
    strategy: str | None = setting(
        None, Name(STRATEGIES, "the bundle's own"), "How tokens are made.",
        origin="[strategies](strategies.md)", unset="the bundle's, which is auto", served=True,
    )  # fmt: skip
    chain: int | None = setting(
        None, Number(least=1, most=LONGEST_CHAIN, whole=True, optional=True), "Most tokens to propose in a cycle.",
        origin="[strategies](strategies.md)", unset="1 for verify, otherwise 4", served=True,
    )  # fmt: skip
    min_confidence: float = setting(
        0.0, Number(least=0, most=1, below=True, notes={0: "always propose"}),
        "The module proposes no token to which it gives a lower probability.",
        origin="[strategies](strategies.md)", served=True,
    )  # fmt: skip
    temperature: float = setting(
        0.0, Number(least=0, notes={0: "greedy"}),
        "How random the text is. 0 is greedy, and top_k, top_p, min_p and seed then change nothing.",
        origin="transformers", in_file=True, served=Number(least=0, most=2),
    )  # fmt: skip
    top_k: int = setting(
        0, Number(least=0, whole=True, notes={0: "all tokens"}), "Sample among so many most likely tokens; 0 for all.",
        origin="transformers", in_file=True, served=True,
    )  # fmt: skip
    top_p: float = setting(
        1.0, Number(least=0, most=1, above=True),
        "Sample among the fewest most likely tokens that have this probability together; 1 for all.",
        origin="transformers", in_file=True, served=Number(least=0, most=1),
    )  # fmt: skip
    min_p: float = setting(
        0.0, Number(least=0, most=1, notes={0: "all tokens"}),
        "Sample among tokens at least so likely, relative to the most likely one; 0 for all.",
        origin="transformers", in_file=True, served=True,
    )  # fmt: skip
    repetition_penalty: float = setting(
        1.0, Number(least=0.01, most=100, notes={1: "none"}),
        "For tokens in prompt and text: logits above 0 are divided by it, others multiplied; 1 for none.",
        origin="transformers, arXiv 1909.05858", in_file=True, served=True,
    )  # fmt: skip
    presence_penalty: float = setting(
        0.0, PENALTY, "Taken off the logits of tokens in the new text; 0 for none.",
        origin="OpenAI, vLLM", served=True,
    )  # fmt: skip
    frequency_penalty: float = setting(
        0.0, PENALTY, "Taken off a token's logit for every time it came in the new text; 0 for none.",
        origin="OpenAI, vLLM", served=True,
    )  # fmt: skip
    no_repeat_ngram_size: int = setting(
        0, Number(least=0, whole=True, notes={0: "no limit"}),
        "No sequence of so many tokens comes twice in prompt and text; 0 for no limit.",
        origin="transformers", in_file=True,
    )  # fmt: skip
    logit_bias: Mapping[int, float] = setting(
        FrozenBiases(), Biases(Number(least=-MOST_BIAS, most=MOST_BIAS)),
        "Added to the logits of token ids; minus infinity forbids one.",
        origin="OpenAI", served=Biases(Number(least=-100, most=100)),
    )  # fmt: skip
    stop: Sequence[str] = setting(
        (), Strings(), "Strings that end the text, left out themselves, also where they span tokens.",
        origin="OpenAI", served=True,
    )  # fmt: skip
    stop_ids: Iterable[int] | None = setting(
        None, TokenIds(), "Token ids that end the text in place of the model's own; an empty list for none.",
        origin="transformers' `eos_token_id`", unset="the model's own",
    )  # fmt: skip
    seed: int = setting(0, Number(whole=True), "The same seed gives the same text.", served=SEED_64)
    logprobs: int | None = setting(
        None, Number(least=0, most=MOST_LOGPROBS, whole=True, optional=True, notes={0: "the chosen token only"}),
        "Log-probabilities of each token, and of so many most likely ones.",
        origin="OpenAI, vLLM", unset="none",
    )  # fmt: skip


class Keywords(TypedDict, total=False):
    """The fields of `Settings` as keywords: a type checker needs them written down, and a test compares both."""

    max_new_tokens: int
    min_new_tokens: int
    strategy: str | None
    chain: int | None
    min_confidence: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float]
    stop: Sequence[str]
    stop_ids: Iterable[int] | None
    seed: int
    logprobs: int | None


SETTINGS = declared(Settings)


def hint(name: str, known: Sequence[str]) -> str:
    """Say which of the `known` names somebody may have meant who wrote `name`, as the end of an error's line."""
    near = [FOREIGN[name]] if FOREIGN.get(name) in known else get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected some of: {', '.join(known)}"


def check(name: str, value: object) -> None:
    """Let a value pass that the setting of this name can have.

    Raises:
        InputError: another kind of value, or out of range.
    """
    SETTINGS[name].kind.own(name, value)


def check_plan(strategy: str | None, chain: object, min_confidence: object) -> None:
    """Let settings pass that go together; of a `strategy` that is not chosen yet (None) all that one of them knows.

    Raises:
        InputError: of another kind, out of range, or for another strategy.
    """
    check("strategy", strategy)
    if chain is not None:
        if strategy is not None and strategy not in LONGEST_CHAINS:
            raise InputError(f"strategy {strategy!r} has no chain; --chain is for {', '.join(LONGEST_CHAINS)}")
        _check_chain(strategy, chain)
    check("min_confidence", min_confidence)
    if min_confidence and strategy not in (None, *CONFIDENT):
        known = " and ".join(CONFIDENT)
        raise InputError(f"strategy {strategy!r} knows no confidence; --min-confidence is for {known}")


def _check_chain(strategy: str | None, chain: object) -> None:
    longest = LONGEST_CHAIN if strategy is None else LONGEST_CHAINS[strategy]
    number = Number(least=1, most=longest, whole=True)
    if not number.has(chain):
        suffix = "" if strategy is None else f" for strategy {strategy!r}"
        raise InputError(f"chain is {chain!r}; expected {number.expected}{suffix}")
