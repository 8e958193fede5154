"""The program that measures a server with several clients counts what they read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

import recycle_onnx
from recycle_onnx.export import export
from tests.helpers import tiny

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that chats, and never ends by itself."""
    folder = tmp_path_factory.mktemp("talker")
    base = tiny.write_endless_base(folder / "base", context_length=600)
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    export(base, folder / "bundle")
    return folder / "bundle"


def test_every_number_of_clients_is_measured(talker: Path) -> None:
    options = ("--new-tokens", "3", "--rounds", "1", "--threads", "1", "--most", "2")
    shown = CliRunner().invoke(import_module("clients").main, [str(talker), *options], catch_exceptions=False)
    assert [line.partition(":")[0] for line in shown.output.splitlines()] == [f"{n} clients" for n in (1, 2)]
    assert "1.00x" in shown.output.splitlines()[0]


def test_a_client_counts_the_tokens_of_its_stream(talker: Path) -> None:
    clients = import_module("clients")
    with recycle_onnx.load(talker, threads=1) as model, clients.serving(model, slots=1) as url:
        answer = clients.ask(url, "the cat", {"max_tokens": 5})
    assert answer.tokens == 5
    assert answer.first > 0
