"""The package within programs that PyInstaller freezes: they need neither a Python nor a checkout where they run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import recycle_onnx

pytest.importorskip("PyInstaller", reason="needs PyInstaller: pip install -e '.[frozen]'")

SAMPLE = Path(__file__).parents[2] / "samples" / "frozen.py"
TEMPLATE = "{% for message in messages %}{{ message.role | upper }} {{ message.content }}\n{% endfor %}ANSWER"
QUESTIONS = ["Tell me of a fox.", "And then?"]
SERVER = """
import asyncio, sys
import recycle_onnx
from recycle_onnx.serve.server import Address, Server

with recycle_onnx.load(sys.argv[1]) as model:
    server = Server(model, "frozen", Address(port=0))
    print(recycle_onnx.__file__, server.url, sep="\\n", flush=True)
    asyncio.run(server.run())
"""
TRIED = {
    "type": "object",
    "properties": {"name": {"anyOf": [{"const": "fox"}, {"type": "string", "pattern": "^[ab]{3}$"}]}},
    "required": ["name"],
    "additionalProperties": False,
}
"""A schema that the server first tries in a process of its own."""


def freeze(script: Path, folder: Path) -> Path:
    """Freeze a program; return what starts it."""
    folders = ["--distpath", folder / "dist", "--workpath", folder / "build", "--specpath", folder]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", *map(str, folders)]
    subprocess.run([*command, str(script)], check=True, timeout=280)
    return folder / "dist" / script.stem / script.stem


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a program on a machine without Python would see."""
    return {name: text for name, text in os.environ.items() if name != "PATH" and not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def program(sample_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample program, and beside it the bundle with a chat template, which needs jinja2."""
    made = freeze(SAMPLE, tmp_path_factory.mktemp("frozen"))
    shutil.copytree(sample_bundle, made.parent / "bundle")
    (made.parent / "bundle" / "chat_template.jinja").write_text(TEMPLATE)
    return made


def run(program: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], input="\n".join(QUESTIONS), capture_output=True, text=True, encoding="utf-8",
        timeout=60, env=environment, cwd=program.parents[2],
    )  # fmt: skip


def test_it_chats_as_the_package_does(program: Path, environment: dict[str, str]) -> None:
    with recycle_onnx.load(program.parent / "bundle") as model:
        chat = model.conversation(system="You tell stories to children.")
        expected = [chat.ask(question, max_new_tokens=40).text for question in QUESTIONS]
    outcome = run(program, environment)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == "".join(f"{answer}\n" for answer in expected)


def test_it_answers_under_a_schema(program: Path, environment: dict[str, str]) -> None:
    outcome = run(program, environment, "--json")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert len(answers) == len(QUESTIONS)
    assert all(answer["animal"] in ("cat", "dog", "fox") and answer["legs"] in (2, 4) for answer in answers)


def test_a_mistake_is_one_line(program: Path, environment: dict[str, str]) -> None:
    outcome = run(program, environment, "nowhere")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("Error: nowhere: no such folder")
    assert len(outcome.stderr.splitlines()) == 1


def test_it_ships_what_runs_bundles_and_not_what_makes_them(program: Path) -> None:
    shipped = {path.name.partition("-")[0] for path in (program.parent / "_internal").iterdir()}
    assert {"onnxruntime", "tokenizers", "llguidance", "numpy"} <= shipped
    assert not shipped & {"onnx", "onnxscript", "onnx_ir", "safetensors", "torch", "click", "rich"}


def test_a_server_has_its_page_and_tries_schemas(program: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    made = freeze(tmp_path / "server.py", tmp_path)
    command = [made, program.parent / "bundle"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            assert Path(process.stdout.readline()).is_relative_to(made.parent)
            url = process.stdout.readline().strip()
            with urlopen(url) as page:
                assert b"<script>" in page.read()
            schema = {"type": "json_schema", "json_schema": {"name": "animal", "schema": TRIED}}
            asked = {"messages": [{"role": "user", "content": "Who?"}], "response_format": schema}
            body = json.dumps(asked).encode()
            with urlopen(Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})) as response:
                answer = json.load(response)
            assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"name"}
        finally:
            process.kill()
