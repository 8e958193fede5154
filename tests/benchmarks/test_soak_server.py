"""benchmarks/soak_server.py for some seconds: a hundred clients of one server, five of them hostile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and glibc's allocator")
def test_honest_clients_are_answered_among_hostile_ones(sample_bundle: Path) -> None:
    command = [sys.executable, "soak_server.py", str(sample_bundle), "--minutes", "0.15", "--warm-up", "0"]
    made = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    told = json.loads(made.stdout)
    assert told["failures"] == []
    assert told["answers"]["honest"] >= 95
    assert told["answers"]["hostile"] >= 5
    # 1 is promised; here the clients and other tests share the processor. A loop that waited for one hostile client
    # would wait for five seconds, as long as its body may take.
    assert told["slowest_health_s"] < 5
