"""Whether ONNX Runtime's telemetry is off in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from recycle_onnx import telemetry
from recycle_onnx.doctor.finding import Finding

State = Literal["off", "off from the first bundle on"]


@dataclass(frozen=True)
class Telemetry:
    """The state in this process, and the variable as onnxruntime read it. ONNX Runtime itself does not tell.

    Loading a bundle turns telemetry off in any case (`disable_telemetry_events`), for the whole process; only the
    variable, set before onnxruntime is imported, keeps it from starting.
    """

    state: State
    variable: str | None


def find() -> Telemetry:
    """Tell the state of telemetry by the variable that onnxruntime read."""
    variable = telemetry.AT_IMPORT
    return Telemetry("off" if variable == "1" else "off from the first bundle on", variable)


def findings(state: Telemetry) -> Iterator[Finding]:
    """Yield a finding where telemetry was on for a while."""
    if state.state != "off":
        value = state.variable or "not set"
        yield Finding(
            "advice",
            f"ONNX Runtime's telemetry is on until a bundle is loaded ({telemetry.VARIABLE} is {value})",
            "usage data may be sent from the moment onnxruntime is imported",
            f"set {telemetry.VARIABLE}=1 where the program starts, or import recycle_onnx before onnxruntime",
        )
