"""The chats in the README and in docs/start.md run as they stand, but for the bundle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from recycle_onnx.runtime.model import Model

ROOT = Path(__file__).parents[2]


def run_block(page: str, bundle_there: str, bundle_here: Path) -> str:
    """What the first program of a page prints with another bundle."""
    block = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    program = block[1].replace(f'"{bundle_there}"', repr(str(bundle_here)))
    assert program != block[1]
    command = [sys.executable, "-X", "utf8", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_is_a_chat_in_five_lines(sample_bundle: Path, sample_model: Model) -> None:
    chat = sample_model.conversation(system="You answer in short sentences.")
    answer = chat.ask("Why is the sky blue?").text
    assert run_block("README.md", "BUNDLE", sample_bundle) == f"{answer}\n"


def test_the_first_steps_have_a_chat_of_two_turns(sample_bundle: Path, sample_model: Model) -> None:
    output = run_block("docs/start.md", ".demo/smollm2", sample_bundle)
    chat = sample_model.conversation(system="You answer in short sentences.")
    for question in ("Why is the sky blue?", "And why is it red in the evening?"):
        assert "".join(token.text for token in chat.send(question, max_new_tokens=100)) in output
    assert output.count("tokens/s, lossless: exact)") == 2
