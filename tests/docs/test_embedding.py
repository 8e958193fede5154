"""docs/embedding.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "embedding.md"


def test_the_documents_blocks_run_one_after_another(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {"BUNDLE": sample_bundle, "__name__": "embedding"}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    out = capsys.readouterr().out
    assert "<Model 'bundle': fp32, trained module" in out
    assert " tokens/s" in out
    assert "loading the full model: 0 of 2" in out
    assert re.search(r"\d+ tokens, of which known before: [1-9]\d+", out)
    assert "cancelled" in out
    assert "too slow" in out
    assert (tmp_path / "chat.safetensors").exists()
