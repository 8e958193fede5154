"""The README's example runs as it stands, but for the bundle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from recycle_onnx.runtime.model import RecycleModel

README = Path(__file__).parents[2] / "README.md"


def test_the_example_is_a_chat_of_two_turns(sample_bundle: Path, sample_model: RecycleModel) -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    program = block[1].replace('".demo/smollm2"', repr(str(sample_bundle)))
    assert program != block[1]
    command = [sys.executable, "-X", "utf8", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    chat = sample_model.conversation(system="You answer in short sentences.")
    for question in ("Why is the sky blue?", "And why is it red in the evening?"):
        assert "".join(token.text for token in chat.send(question, max_new_tokens=100)) in result.stdout
    assert result.stdout.count("tokens/s, lossless: exact)") == 2
