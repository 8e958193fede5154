"""The reference page is what the docstrings say today."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_up_to_date() -> None:
    render = runpy.run_path(str(DOCS / "make_reference.py"))["render"]
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == render(), "run docs/make_reference.py"
