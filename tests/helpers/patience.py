"""How long a test waits for what takes a second or two on a free machine."""

from __future__ import annotations

PATIENCE = 120.0
"""Seconds. Beside other workers and on a busy machine a process may have a tenth of a core. Whoever has not answered
by then hangs; a test's own limit (`timeout` in pyproject.toml) is longer, so that the test says what it waited for.
"""
