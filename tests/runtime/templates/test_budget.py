"""No chat template takes a machine: each of these ends within its budget of time and memory, with one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.conversation import Conversation
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.templates import budget as template_budget
from tests.helpers.bombs import BOMBS, ORDINARY
from tests.helpers.campaigns import LONG
from tests.helpers.templates import TEMPLATES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits a process as POSIX does")

SECONDS = template_budget.SECONDS if LONG else 0.3
"""A template's budget: most of them run into another limit before, and those that do not would only take longer."""
ROOM, MEGABYTES = 20, 64
"""What one may take beyond that: time, in units of `million_turns`, and memory."""
RUN = """
import json, resource, sys, time
from pathlib import Path
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.templates import budget
from tests.helpers.bombs import BOMBS
from tests.helpers.speed import million_turns

folder, budget.SECONDS = Path(sys.argv[1]), float(sys.argv[2])

def defuse(template):
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    start = time.thread_time()
    try:
        ChatTemplate.find(folder, variables={"n": 99}).render([{"role": "user", "content": "a cat"}])
        error = None
    except InputError as refusal:
        error = str(refusal)
    return {"seconds": time.thread_time() - start, "peak": peak(), "error": error}

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size

defuse("{{ messages | tojson }}")  # what is imported and made once
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
unit = million_turns()
before = peak()
for name in BOMBS:
    print(json.dumps({"name": name, "begun": True}), flush=True)
    print(json.dumps({"name": name, "before": before, "unit": unit, **defuse(BOMBS[name])}), flush=True)
    before = peak()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of all of them, in a process of its own: one that is not stopped must not take the tests along."""
    command = [sys.executable, "-c", RUN, str(tmp_path_factory.mktemp("bombs")), str(SECONDS)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]).stdout
    return {record["name"]: record for record in map(json.loads, lines.splitlines())}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_would_take_the_machine_or_leave_the_sandbox_is_refused(
    name: str, outcomes: dict[str, Any]
) -> None:
    outcome = outcomes.get(name, {})
    assert "seconds" in outcome, "it was not stopped"
    assert outcome["seconds"] < SECONDS + ROOM * outcome["unit"]
    assert (outcome["peak"] - outcome["before"]) / 2**20 < MEGABYTES
    assert outcome["error"] is not None
    assert "chat template 'default'" in outcome["error"]
    assert "\n" not in outcome["error"]
    assert len(outcome["error"]) < 800


def test_there_are_a_hundred_of_them() -> None:
    assert len(BOMBS) >= 100


def find(folder: Path, template: str, **variables: Any) -> ChatTemplate:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ChatTemplate.find(folder, variables=variables)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_as_long_as_a_book_is_rendered(name: str, tmp_path: Path) -> None:
    template = find(tmp_path, TEMPLATES[name])
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": f"{number} " + "the cat sat\n" * 60} for number in range(1001)]
    text = template.render(chat)
    kept = chat[:7] if name == "blocks" else chat
    assert all(message["content"].strip() in text.replace("\\n", "\n") for message in kept)


@pytest.mark.parametrize(("template", "expected"), ORDINARY)
def test_what_ordinary_templates_use_works(template: str, expected: str, tmp_path: Path) -> None:
    assert find(tmp_path, template).render([{"role": "user", "content": "a"}]) == expected


def test_time_runs_out_where_steps_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "STEPS", 10**12)
    monkeypatch.setattr(template_budget, "SECONDS", 0.1)
    with pytest.raises(InputError, match=r"takes longer than the 0\.1 s"):
        find(tmp_path, BOMBS["loop: two"]).render([])


def test_a_refused_template_changes_nothing_in_a_conversation(
    sample_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_budget, "SECONDS", float("inf"))
    chat = Conversation(sample_model)
    chat.template = ChatTemplate("bomb", _bomb(sample_model.bundle.folder))
    with pytest.raises(InputError, match="takes more steps"):
        chat.send("a cat")
    assert chat.messages == []


def _bomb(folder: Path) -> Any:
    from recycle_onnx.runtime.templates.jinja import compiled

    render = compiled(BOMBS["loop: two"], f"{folder}: chat template 'bomb'")
    return lambda messages: render({"messages": messages})
