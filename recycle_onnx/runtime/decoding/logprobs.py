"""Log-probabilities of tokens, as the model gives them: before processors, temperature and candidates.

(So do OpenAI's interface and vLLM: what was chosen may have another probability under the settings it was chosen with.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities.

    Of the chosen token (None where a draft vocabulary lacks it), and of the most likely ones.
    """

    chosen: float | None
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-probabilities [V] of logits [V]."""
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def logprobs(
    logits: NDArray[np.float32], token: int, top: int, vocabulary: NDArray[np.int64] | None = None
) -> Logprobs:
    """Return the log-probabilities of `token` and of the `top` most likely ones, best first.

    Logits [V] belong to the ids in `vocabulary` (ascending), without one to 0 … V - 1.
    """
    values = log_softmax(logits)
    ids = np.arange(len(values)) if vocabulary is None else vocabulary
    place = int(np.searchsorted(ids, token))
    known = place < len(ids) and ids[place] == token
    top = min(top, len(values))
    best = np.flatnonzero(values >= np.partition(values, -top)[-top]) if top else np.zeros(0, np.int64)
    best = best[np.argsort(-values[best], kind="stable")][:top]
    pairs = zip(ids[best].tolist(), values[best].tolist(), strict=True)
    return Logprobs(float(values[place]) if known else None, tuple(pairs))
