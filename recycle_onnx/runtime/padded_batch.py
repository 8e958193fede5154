"""Hidden states of several short texts in one run, as rows of one length.

Every row begins at position 0 and has no past: what is filled in behind a text cannot be seen by the tokens before it.
So the graph needs no mask for it, and any flavour reads such a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from recycle_onnx.contract import ATTENTION_MASK, HIDDEN_STATES, INPUT_IDS, LOGITS_TO_KEEP
from recycle_onnx.runtime.decoding.half import Half, States
from recycle_onnx.runtime.ort.native import run

LONGEST_IN_BATCH = 64
"""Tokens of a text that shares a run: a longer one keeps two cores busy by itself."""
MOST_IN_BATCH = 256
"""Tokens of a run with several texts, those that are filled in among them."""


def takes_batches(half: Half) -> bool:
    """Tell whether a half has everything on the host, and gives the logits of one row if asked to."""
    places = (*half.reads.values(), *half.writes.values())
    return not half.always_all and all(place.is_host for place in places)


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return which texts are read together: their places in `lengths`, those of like length beside each other."""
    made: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        length, last = lengths[place], made[-1] if made else []
        if last and length <= LONGEST_IN_BATCH and (len(last) + 1) * length <= MOST_IN_BATCH:
            last.append(place)
        else:
            made.append([place])
    return made


def read_batch(half: Half, texts: Sequence[list[int]]) -> States:
    """Read texts side by side, without a cache; return hidden states [B, S, H], of each text its own first rows."""
    count, longest, spec = len(texts), max(map(len, texts)), half.spec
    ids = np.zeros((count, longest), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    nothing = np.zeros((count, spec.num_kv_heads, 0, spec.head_dim), spec.float_type)
    states: States = np.zeros((count, longest, spec.hidden_size), spec.float_type)
    inputs = {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), LOGITS_TO_KEEP: np.array(1, np.int64)}
    binding, wrap = half.session.io_binding(), ort.OrtValue.ortvalue_from_numpy
    for name, array in (inputs | dict.fromkeys(spec.past_names(), nothing)).items():
        binding.bind_ortvalue_input(name, wrap(array))
    binding.bind_ortvalue_output(HIDDEN_STATES, wrap(states))
    run(half.session, binding)
    return states
