"""Log-probabilities of tokens, as OpenAI's APIs have them."""

from __future__ import annotations

from typing import Any

from recycle_onnx.runtime.generation import Token
from recycle_onnx.serve import answers
from recycle_onnx.serve.token_decoder import TokenDecoder

LOWEST_LOGPROB = -9999.0
"""What OpenAI's API gives for tokens that cannot come: JSON has no infinity."""


def entry_of(token: Token, decoder: TokenDecoder) -> answers.TokenLogprob:
    """Return a token with its log-probability and those of the likeliest in its place."""

    def shown(id_: int, logprob: float | None) -> dict[str, Any]:
        return {"token": decoder.text(id_), "logprob": finite(logprob), "bytes": decoder.bytes(id_)}

    others = [answers.TokenText(**shown(id_, logprob)) for id_, logprob in token.top_logprobs or ()]
    return answers.TokenLogprob(**shown(token.id, token.logprob), top_logprobs=others)


def finite(logprob: float | None) -> float:
    """Return a log-probability that JSON can hold."""
    return LOWEST_LOGPROB if logprob is None else max(LOWEST_LOGPROB, logprob)
