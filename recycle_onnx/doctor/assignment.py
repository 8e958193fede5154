"""Which nodes of a graph run on which execution provider."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnxruntime as ort

RECORD = ("session.record_ep_graph_assignment_info", "1")
"""The setting that a session needs before it can tell."""
IS_TOLD = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
"""Whether this ONNX Runtime can tell; 1.23 cannot."""


@dataclass(frozen=True)
class Assignment:
    """The nodes of a graph by provider (ONNX Runtime's name) and operator, as `MatMul` or `com.microsoft.MatMulNBits`.

    The nodes are those of the optimized graph.
    """

    nodes: dict[str, dict[str, int]]

    def elsewhere(self, provider: str) -> dict[str, int]:
        """Return operators that another provider has to run, with the number of nodes."""
        counts: Counter[str] = Counter()
        for name, operators in self.nodes.items():
            if name != provider:
                counts.update(operators)
        return dict(counts)

    @property
    def total(self) -> int:
        """The number of all nodes."""
        return sum(sum(operators.values()) for operators in self.nodes.values())


def of_session(session: ort.InferenceSession) -> Assignment | None:
    """Ask a session that was made with `RECORD`; None where this ONNX Runtime is too old to tell."""
    if not IS_TOLD:
        return None
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = (f"{node.domain}.{node.op_type}".lstrip(".") for node in part.get_nodes())
        counts.setdefault(part.ep_name, Counter()).update(names)
    return Assignment({name: dict(operators.most_common()) for name, operators in counts.items()})
