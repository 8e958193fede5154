"""`recycle-onnx run HUB_ID` against a hub on this machine: fetched and exported once, and mistakes are one line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

from recycle_onnx.bundle import Bundle
from tests.helpers import tiny
from tests.helpers.command import assert_one_error, names
from tests.helpers.patience import PATIENCE

ID, COMMIT = "tiny/talker", "c" * 40
ANSWER = ("--prompt", "the cat", "-n", "4", "--threads", "1", "--json")
pytestmark = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs huggingface_hub (the extra hub)")


@dataclass
class Hub:
    """A hub with one model, and a home for the caches of those who ask it; `asked` are the paths, method first."""

    folder: Path
    home: Path
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def run(self, *arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own: huggingface_hub reads its variables when it is imported."""
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        env |= {"HF_HOME": str(self.home / "hf"), "RECYCLE_ONNX_CACHE": str(self.home / "cache")}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        call = f"main({list(map(str, arguments))!r}, standalone_mode={not code})"
        command = [sys.executable, "-c", f"from recycle_onnx.cli import main; {call}{code}"]
        return subprocess.run(
            command, env=env, cwd=self.home, capture_output=True, text=True, check=False, timeout=PATIENCE
        )


class Answering(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: a model's list of files, and each of them by its commit."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if path in (f"/api/models/{ID}", f"/api/models/{ID}/revision/main", f"/api/models/{ID}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in names(self.hub.folder)]
            return self.give(json.dumps({"id": ID, "sha": COMMIT, "siblings": siblings}).encode())
        if path == f"/api/models/{ID}/tree/{COMMIT}":
            sizes = {name: (self.hub.folder / name).stat().st_size for name in names(self.hub.folder)}
            files = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            return self.give(json.dumps(files).encode())
        for prefix in (f"/{ID}/resolve/{COMMIT}/", f"/{ID}/resolve/main/"):
            file = self.hub.folder / path.removeprefix(prefix)
            if path.startswith(prefix) and file.is_file():
                return self.give(file.read_bytes())
        code = "RevisionNotFound" if path.startswith(f"/api/models/{ID}/") else "RepoNotFound"
        return self.give(b"{}", 404, {"X-Error-Code": code})

    do_HEAD = do_GET  # noqa: N815 -- as the class of the standard library calls it

    def give(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha256(body).hexdigest()
        more = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for name, value in (more | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tiny.write_base(tmp_path / "talker", tiny.tiny_config(context_length=200))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "pytorch_model.bin").write_bytes(b"another format")
    hub = Hub(folder, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Answering, hub)) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def test_a_model_of_the_hub_is_fetched_and_exported_once(hub: Hub) -> None:
    first = hub.run("run", ID, *ANSWER)
    assert first.returncode == 0, first.stderr
    assert "note: exported to" in first.stderr
    shown = json.loads(first.stdout)
    assert shown["exported"] is True
    bundle = Path(shown["bundle"])
    assert bundle.is_relative_to(hub.home / "cache")
    assert (bundle.name, Bundle.open(bundle).manifest.precision) == ("talker", "int8")
    assert f"GET /{ID}/resolve/{COMMIT}/model.safetensors" in hub.asked
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    hub.asked.clear()
    loaded = "; import sys; print([name for name in ('onnxscript', 'recycle_onnx.export') if name in sys.modules])"
    second = hub.run("run", ID, *ANSWER, code=loaded)
    again, modules = second.stdout.rsplit("\n", 2)[:2]
    assert (json.loads(again)["text"], json.loads(again)["exported"], modules) == (shown["text"], False, "[]")
    assert not any("/resolve/" in path and path.startswith("GET") for path in hub.asked)
    hub.endpoint = "http://127.0.0.1:9"  # where nobody listens
    third = hub.run("run", ID, *ANSWER)
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)["text"] == shown["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny/nobody",), "neither a folder or file here nor a model on the hub"),
        ((ID, "--revision", "v9"), "has no revision 'v9'"),
    ],
    ids=["no such id", "no such revision"],
)
def test_what_the_hub_has_not_is_one_line(arguments: tuple[str, ...], words: str, hub: Hub) -> None:
    refused = hub.run("run", *arguments, *ANSWER)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert_one_error(refused.stderr, arguments[0], words)
    assert not (hub.home / "cache" / "bundles").exists()


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    failed = hub.run("run", ID, *ANSWER)
    assert failed.returncode == 1
    assert_one_error(failed.stderr, ID, "the hub cannot be reached")
