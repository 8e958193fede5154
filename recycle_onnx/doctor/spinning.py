"""Whether idle threads of one half take processors from the other half's turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnxruntime as ort

from recycle_onnx.contract import Kind
from recycle_onnx.doctor.finding import Finding
from recycle_onnx.machine.processors import Processors
from recycle_onnx.runtime.decoding.decoder import Decoder

SHORT_US = 1000
"""Spinning that ends by itself after so long is over before the other half's turn is."""
ROUNDS = 6
"""Rounds, of which medians are compared: another process may disturb one of them."""
STEPS = 8
"""Steps of a round: so many take longer than the clock's grain even on small models."""
SLOW = 1.7
"""Turns that cost so much more than each half alone are worth a word; noise seldom reaches it."""


@dataclass(frozen=True)
class Spinning:
    """The halves whose sessions spin between runs, and the cost of steps in turns against steps of each alone."""

    halves: list[Kind]
    turns_against_alone: float | None


def spins(session: ort.InferenceSession, processors: Processors) -> bool:
    """Tell whether a session's settings let its threads spin after a run, in a pool of its own.

    `session.force_spinning_stop`, `session.intra_op.allow_spinning` and `session.intra_op.spin_duration_us` say so
    (onnxruntime_session_options_config_keys.h). With one thread there is no pool.
    """
    options = session.get_session_options()
    if not options.use_per_session_threads or processors.session_threads(options.intra_op_num_threads or None) == 1:
        return False
    stops = _entry(options, "session.force_spinning_stop") == "1"
    never = _entry(options, "session.intra_op.allow_spinning") == "0"
    duration = _entry(options, "session.intra_op.spin_duration_us")
    return not (stops or never or (duration.isdigit() and int(duration) <= SHORT_US))


def turns_against_alone(decoder: Decoder, token: int) -> float:
    """Measure a full step and a recycle step in turns, by those of each one repeated; about 1 where none spins.

    `decoder` has read a prompt, and its module has caught up.
    """
    full, module = _steps(decoder, token)
    alone, turns = [], []
    for _ in range(ROUNDS):
        alone.append(_seconds([full] * STEPS) + _seconds([module] * STEPS))
        turns.append(_seconds([full, module] * STEPS))
    return statistics.median(turns) / statistics.median(alone)


def findings(spinning: Spinning) -> Iterator[Finding]:
    """Yield sessions that spin, or turns that are slow for another reason."""
    measured = spinning.turns_against_alone
    cost = "" if measured is None else f"; here turns cost {measured:.2f}x what each half costs alone"
    if spinning.halves:
        yield Finding(
            "broken",
            f"threads of the {' and the '.join(_NAMES[half] for half in spinning.halves)} spin between runs{cost}",
            "two sessions take turns: idle threads of the one keep the other from its cores, and nothing is gained",
            "leave session.force_spinning_stop and session.intra_op.spin_duration_us as they are, or give one thread",
        )
    elif measured is not None and measured > SLOW:
        yield Finding(
            "advice",
            f"steps in turns cost {measured:.2f}x what each half costs alone",
            "something else in this process or on this machine takes the cores between steps",
            "stop what else computes here, or give fewer threads; `recycle-onnx bench` shows what helps",
        )


_NAMES: dict[Kind, str] = {"full": "full model", "recycler": "module"}


def _entry(options: ort.SessionOptions, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:  # not set
        return ""


def _steps(decoder: Decoder, token: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Make a full step and one of the module that leave the text as long as it was."""
    assert decoder.recycler is not None
    length, recycler = decoder.full.length, decoder.recycler

    def full() -> None:
        decoder.full_step([token], 1)
        decoder.keep(length)

    def module() -> None:
        recycler.step([token], keep=1)
        decoder.forget_guesses()

    return full, module


def _seconds(steps: list[Callable[[], object]]) -> float:
    started = time.perf_counter()
    for step in steps:
        step()
    return time.perf_counter() - started
