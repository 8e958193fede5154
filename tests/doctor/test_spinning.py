"""Which settings of a session let its threads spin between runs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

import recycle_onnx
from recycle_onnx.doctor import spinning
from recycle_onnx.doctor.spinning import Spinning
from recycle_onnx.machine.processors import Processors
from recycle_onnx.runtime.ort.sessions import session_options

TWO_CORES = Processors(physical=2, logical=2, allowed=2, quota=None)
STOP, ALLOW = "session.force_spinning_stop", "session.intra_op.allow_spinning"
DURATION = "session.intra_op.spin_duration_us"


def open_with(path: Path, threads: int, **entries: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(path / "model.onnx", options)


@pytest.mark.parametrize(
    ("threads", "entries", "expected"),
    [
        (2, {}, True),
        (0, {}, True),
        (2, {STOP: "0", ALLOW: "1"}, True),
        (2, {DURATION: "100000"}, True),
        (1, {}, False),
        (2, {STOP: "1"}, False),
        (2, {ALLOW: "0"}, False),
        (2, {DURATION: "50"}, False),
    ],
)
def test_settings(threads: int, entries: dict[str, str], expected: bool, tiny_bundle: Path) -> None:
    assert spinning.spins(open_with(tiny_bundle, threads, **entries), TWO_CORES) is expected


def test_sessions_of_ours_do_not_spin(tiny_bundle: Path) -> None:
    session = ort.InferenceSession(tiny_bundle / "model.onnx", session_options(2))
    assert not spinning.spins(session, TWO_CORES)


def test_turns_leave_the_text_as_it_was(tiny_bundle: Path) -> None:
    with recycle_onnx.load(tiny_bundle, threads=1) as model:
        decoder = model.decoder("verify")
        decoder.prefill([5, 6, 7])
        decoder.start_recycling(8)
        assert decoder.recycler is not None
        before = list(decoder.full.tokens), list(decoder.recycler.tokens)
        assert spinning.turns_against_alone(decoder, 8) > 0
        assert (decoder.full.tokens, decoder.recycler.tokens) == before


def test_slow_turns_without_spinning_are_worth_a_word() -> None:
    assert list(spinning.findings(Spinning([], 1.1))) == []
    (slow,) = spinning.findings(Spinning([], 2.0))
    (forced,) = spinning.findings(Spinning(["full"], 1.0))
    assert (slow.level, forced.level) == ("advice", "broken")
