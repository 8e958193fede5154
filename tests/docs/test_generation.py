"""The programs in docs/generation.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "generation.md"


def test_the_examples_of_the_guide_run(sample_bundle: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 5
    names: dict[str, object] = {}
    for program in programs:
        exec(program.replace('"BUNDLE"', repr(str(sample_bundle))), names)
    assert {"first", "lipogram", "turns", "answer"} <= names.keys()
