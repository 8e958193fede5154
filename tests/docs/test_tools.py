"""docs/tools.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recycle_onnx.runtime.model import Model
from tests.serve.conftest import NAME, serving

pytest.importorskip("llguidance")
DOCUMENT = Path(__file__).parents[2] / "docs" / "tools.md"


def test_the_documents_blocks_run_one_after_another(sample_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    with serving(sample_model) as running:
        names: dict[str, object] = {"client": running.client(), "NAME": NAME, "model": sample_model}
        for block in blocks:
            exec(compile(block, str(DOCUMENT), "exec"), names)
    out = capsys.readouterr().out
    assert "CallStart(index=0" in out
    assert "ToolCall(id='call_" in out
