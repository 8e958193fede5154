"""The sample programs run as they stand, on the shipped sample."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recycle_onnx.runtime.model import Model
from tests.helpers import processes
from tests.helpers.command import run
from tests.helpers.patience import PATIENCE

SAMPLES = Path(__file__).parents[2] / "samples"
PROMPT = "One day, a little fox"


def program(name: str, *arguments: object, before: tuple[str, ...] = ()) -> str:
    """Standard output of a sample."""
    if before:
        command = [*before, sys.executable, str(SAMPLES / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240)
    else:
        done = processes.run(SAMPLES / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_minimal(sample_bundle: Path, sample_model: Model) -> None:
    assert program("minimal.py", sample_bundle, PROMPT) == sample_model.generate(PROMPT, max_new_tokens=60).text


def test_asyncio(sample_bundle: Path, sample_model: Model) -> None:
    prompts = (PROMPT, "The sun was hot and")
    pieces = [line.split(" ", 1) for line in program("asyncio_stream.py", sample_bundle, *prompts).splitlines()]
    for number, prompt in enumerate(prompts, start=1):
        text = "".join(eval(piece) for whose, piece in pieces if whose == str(number))
        assert text == sample_model.generate(prompt, max_new_tokens=30).text
    order = [whose for whose, _ in pieces]
    assert order != sorted(order)  # they take turns


def test_conversation(sample_bundle: Path, sample_model: Model) -> None:
    lines = program("conversation.py", sample_bundle)
    chat = sample_model.conversation(system="You tell stories to children.")
    for message in ("Tell me of a fox.", "And then?"):
        answer = "".join(token.text for token in chat.send(message, max_new_tokens=40)).strip()
        assert f"> {message}\n{answer}\n" in lines
    reused, prompt = (int(word) for word in lines.rsplit("(", 1)[1].split() if word.isdigit())
    assert 0 < reused < prompt


def test_structured(sample_bundle: Path) -> None:
    pytest.importorskip("llguidance")
    found = json.loads(program("structured.py", sample_bundle).replace("'", '"'))
    assert found["animal"] in ("cat", "dog", "fox")
    assert found["legs"] in (2, 4)


def test_gui(sample_bundle: Path, sample_model: Model) -> None:
    """In a window that nobody sees: the text in it is the model's."""
    if importlib.util.find_spec("tkinter") is None:
        pytest.skip("this Python has no tkinter")
    screen = () if os.environ.get("DISPLAY") or sys.platform != "linux" else ("xvfb-run", "-a")
    if screen and not shutil.which("xvfb-run"):
        pytest.skip("no display and no xvfb-run to make one (apt install xvfb)")
    shown = program("gui.py", sample_bundle, PROMPT, "--close", before=screen)
    assert shown == sample_model.generate(PROMPT, max_new_tokens=120).text + "\n"


def test_openai_client(sample_bundle: Path, sample_model: Model) -> None:
    for package in ("openai", "uvicorn", "starlette"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    server = processes.start("serve", sample_bundle, "--port", "0")
    try:
        address = re.search(r"http://\S+:\d+", server.stderr.readline().decode())
        assert address is not None
        text = program("openai_client.py", address[0], "Tell me of a fox.")
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE)
    answer = sample_model.conversation().send("Tell me of a fox.", max_new_tokens=40)
    assert text == "".join(token.text for token in answer)


def test_ray(sample_bundle: Path, tmp_path: Path) -> None:
    """Two workers of a local Ray write what `batch` writes, in an order of their own."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'recycle-onnx[ray]'")
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"{PROMPT} {n}", "max_new_tokens": 10 + n} for n in range(7)]
    lines[3] = {"messages": [{"role": "user", "content": PROMPT}], "id": "chat", "max_new_tokens": 5}
    lines[4] |= {"logit_bias": {"5": 1.0}}
    lines[5] = {"prompt": "word " * 5000}
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("batch", sample_bundle, prompts, "-o", tmp_path / "batch.jsonl").exit_code == 1
    program("ray_batch.py", sample_bundle, prompts, tmp_path / "ray.jsonl")
    ray, batch = ((tmp_path / name).read_text(encoding="utf-8").splitlines() for name in ("ray.jsonl", "batch.jsonl"))
    assert sorted(ray) == sorted(batch)
    assert len(batch) == len(lines)
