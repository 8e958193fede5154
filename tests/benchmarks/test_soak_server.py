"""benchmarks/soak_server.py for some seconds: a hundred clients of one server, five of them hostile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.helpers.campaigns import LONG

SHARE = 1.0 if LONG else 0.5
"""Of six seconds, and of the answers in them."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and glibc's allocator")
def test_honest_clients_are_answered_among_hostile_ones(sample_bundle: Path) -> None:
    command = [sys.executable, "soak_server.py", str(sample_bundle), "--minutes", str(0.1 * SHARE), "--warm-up", "0"]
    made = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    told = json.loads(made.stdout)
    assert told["failures"] == []
    assert told["answers"]["honest"] >= 95 * SHARE
    assert told["answers"]["hostile"] >= 5 * SHARE
    # 1 is promised; here the clients and other tests share the processor. A loop that waited for one hostile client
    # would wait for five seconds, as long as its body may take.
    assert told["slowest_health_s"] < 5
