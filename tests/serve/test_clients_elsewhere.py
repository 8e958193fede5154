"""Clients of OpenAI's API in environments of their own: JavaScript's, the AI SDK, LangChain and llm.

`make test-clients` makes the environments, and leaves out those that do not install. Each client is a program in
`clients/`, which prints what it got as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.runtime.model import Model
from tests.helpers.patience import PATIENCE
from tests.helpers.tools import write_talker
from tests.serve.conftest import Running, serving

pytest.importorskip("llguidance")

CLIENTS = Path(__file__).with_name("clients")
ROOT = Path(__file__).parents[2]
BIN = "Scripts" if sys.platform == "win32" else "bin"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ASKED: Any = {"messages": [{"role": "user", "content": "the cat"}], "temperature": 0, "seed": 7, "max_tokens": 200}
TEXTS = ["the cat", "a dog"]
ENDS = ("stop", "length")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model whose template knows no tools: it is told of them in words."""
    bundle = write_talker(tmp_path_factory.mktemp("talker"), "generic", PLAIN, seed=7)
    with recycle_onnx.load(bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def running(model: Model) -> Iterator[Running]:
    with serving(model) as server:
        yield server


@pytest.fixture(scope="module")
def text(running: Running) -> str:
    """What OpenAI's client for Python gets."""
    content = running.client().chat.completions.create(model="any", **ASKED).choices[0].message.content
    assert content
    return content


def environment(name: str) -> Path:
    """The folder of an environment that was made whole."""
    folder = ROOT / f".venv-{name}"
    if not (folder / "ready").exists():
        pytest.skip(f"needs an environment of its own: make .venv-{name}/ready")
    return folder / BIN


def output(*command: object, **variables: str) -> str:
    """What a client prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def javascript(program: str, url: str) -> Any:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules" / "ready").exists():
        pytest.skip("needs Node.js and the clients: make tests/serve/clients/node_modules/ready")
    return json.loads(output(node, CLIENTS / program, url))


def assert_call(name: str, arguments: dict[str, Any]) -> None:
    assert name == "get_weather"
    assert set(arguments) == {"city"}
    assert len(arguments["city"]) <= 8


def assert_vectors(model: Model, vectors: list[list[float]]) -> None:
    assert np.allclose(vectors, model.embed(TEXTS), atol=1e-6)


def test_openai_for_javascript(running: Running, model: Model, text: str) -> None:
    answers = javascript("openai.mjs", running.url)
    assert [answers[name] for name in ("chat", "streamed", "response")] == [text] * 3
    assert_call(answers["call"]["name"], json.loads(answers["call"]["arguments"]))
    assert {name: answers["streamedCall"][name] for name in ("name", "arguments")} == answers["call"]
    assert answers["afterwards"] in ENDS
    assert set(answers["structured"]) == {"city"}
    assert (answers["events"][0], answers["events"][-1]) == ("response.created", "response.incomplete")
    assert "response.output_text.delta" in answers["events"]
    assert_vectors(model, answers["embedded"])
    assert answers["refused"] == {"kind": "BadRequestError", "status": 400, "param": "temprature"}


def test_the_ai_sdk(running: Running, model: Model, text: str) -> None:
    answers = javascript("ai_sdk.mjs", running.url)
    assert [answers["text"], answers["streamed"]] == [text] * 2
    first, second = answers["steps"]  # the second has read what the first one's calls returned
    for name, arguments in (*first, *second):
        assert_call(name, arguments)
    assert answers["streamedCalls"] == first
    assert answers["cities"] == [arguments["city"] for _, arguments in (*first, *second, *first)]
    assert answers["object"]["animal"] in ("cat", "dog")
    assert answers["object"]["legs"] == 4
    assert_vectors(model, answers["embeddings"])


def test_langchain(running: Running, model: Model, text: str) -> None:
    answers = json.loads(output(environment("langchain") / "python", CLIENTS / "langchain_client.py", running.url))
    assert [answers["text"], answers["streamed"]] == [text] * 2
    ((name, arguments),) = answers["call"]
    assert_call(name, arguments)
    assert answers["streamed_call"] == answers["call"]
    assert answers["afterwards"] in ENDS
    assert set(answers["structured"]) == {"function_calling", "json_schema"}
    for animal in answers["structured"].values():
        assert animal["name"] in ("cat", "dog")
        assert animal["legs"] in (2, 4)
    assert_vectors(model, answers["embeddings"])


class TestLlm:
    @pytest.fixture
    def llm(self, running: Running, tmp_path: Path) -> Any:
        """The command, which knows the server as the model `here`."""
        command = environment("llm") / "llm"
        known = {"model_id": "here", "model_name": "any", "api_base": f"{running.url}/v1", "api_key_name": "none"}
        abilities = {"supports_schema": True, "supports_tools": True}
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([{**known, **abilities}]))
        options = [word for name in ("temperature", "seed", "max_tokens") for word in ("-o", name, ASKED[name])]

        def ask(*words: object) -> str:
            return output(command, *words, "-m", "here", *options, "--key", "none", LLM_USER_PATH=str(tmp_path))

        return ask

    def test_an_answer_and_the_next_one(self, llm: Any, text: str) -> None:
        assert llm("the cat") == f"{text}\n"
        assert llm("the cat", "--no-stream") == f"{text}\n"
        assert llm("-c", "and then").strip()

    def test_a_schema(self, llm: Any) -> None:
        schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"]}
        assert json.loads(llm("the cat", "--schema", json.dumps(schema)))["legs"] in (2, 4)

    def test_tools(self, llm: Any) -> None:
        """The model may choose; that the request is taken is the point."""
        assert llm("the cat", "-T", "llm_time", "-T", "llm_version").strip()
