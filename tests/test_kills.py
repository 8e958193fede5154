"""A kill at any moment leaves the old or the new, whole; the next run ends well, and nothing is left after it.

RECYCLE_ONNX_KILLS=300 tries so many moments of each verb instead of a few.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.checkpoint import Checkpoint
from recycle_onnx.runtime import tensor_file
from tests.helpers import kills
from tests.helpers.campaigns import LONG
from tests.helpers.command import names

MOMENTS = int(os.environ.get("RECYCLE_ONNX_KILLS", "0"))
FEW = {"export": 6, "quantize": 6, "batch": 6, "save": 6, "prepack": 6, "prompts": 6, "calibrate": 3, "train": 2}
LINES = 8

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL, and replaces folders in one step"),
    pytest.mark.timeout(60 + 120 * (MOMENTS or 10)),
]


@dataclass(frozen=True)
class Place:
    """Where a verb works: nothing but its target, its inputs and its cache is in there."""

    folder: Path

    def run(self, last: float, *arguments: object) -> kills.Ended:
        return kills.run(self.folder, last, *arguments)

    def hidden(self) -> list[Path]:
        return [path for path in self.folder.rglob(".*") if path.name.startswith(".")]


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> Place:
    folder = tmp_path / "place"
    shutil.copytree(tiny_checkpoint, folder / "model")
    shutil.copytree(tiny_bundle, folder / "bundle")
    lines = [json.dumps({"prompt": f"the cat {number}"}) for number in range(LINES)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "text.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    return Place(folder)


def check_bundle(path: Path) -> None:
    Bundle.open(path, verify=True)


def check_checkpoint(path: Path) -> None:
    with Checkpoint.open(path) as checkpoint:
        assert checkpoint.recycler is not None


def check_lines(path: Path) -> None:
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    assert [json.loads(line)["id"] for line in whole] == list(range(1, len(whole) + 1))


def check_conversation(path: Path) -> None:
    model = recycle_onnx.load(path.parent / "bundle")
    assert len(model.load_conversation(path).messages) == 2


def check_prompts(path: Path) -> None:
    bundle = Bundle.open(path.parent.parent / "bundle")
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    for file in files:
        arrays, about = tensor_file.read(file)
        assert about["bundle"] == bundle.digest
        assert {len(tokens) for name, tokens in arrays.items() if name.endswith("tokens")} == {8}
        file.unlink()  # so that the next one has as much to write; what it left half is there still


def begin_again(verb: str, folder: Path) -> None:
    """Take away what makes a verb go on, or have nothing to do."""
    if verb == "batch":
        (folder / "out").unlink(missing_ok=True)
    if verb in ("prepack", "prompts"):
        shutil.rmtree(folder / "cache", ignore_errors=True)


def moments(number: int, looks: int, seconds: float) -> list[int | float]:
    """Looks at the file system, as far as there are so many, and then points in time."""
    at_looks = min(number, looks)
    rest = number - at_looks
    return [
        *(1 + index * looks // at_looks for index in range(at_looks)),
        *(0.001 + index * seconds / rest for index in range(rest)),
    ]


VERBS = {
    "export": (("export", "{0}/model", "{0}/out", "--force"), "out", check_bundle),
    "quantize": (("quantize", "{0}/bundle", "{0}/out", "--bits", 8, "--force"), "out", check_bundle),
    "batch": (("batch", "{0}/bundle", "{0}/prompts.jsonl", "-o", "{0}/out", "--resume", "-n", 2), "out", check_lines),
    "save": (("save", "{0}/bundle", "{0}/chat"), "chat", check_conversation),
    "prepack": (("prepack", "{0}/bundle"), "bundle", check_bundle),
    "prompts": (("prompts", "{0}/bundle"), "cache/prompts", check_prompts),
    "calibrate": (("calibrate", "{0}/bundle", "--context", 8, "--new-tokens", 4), "bundle", check_bundle),
    "train": (
        ("train", "{0}/model", "--data", "{0}/text.txt", "--steps", 2, "--batch-size", 2, "--sequence-length", 16),
        "model",
        check_checkpoint,
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(verb: str, place: Place) -> None:
    if verb == "train" and importlib.util.find_spec("torch") is None:
        pytest.skip("trains with torch")
    template, target, check = VERBS[verb]
    command = [str(word).format(place.folder) for word in template]
    undisturbed = place.run(0, *command)
    assert undisturbed.returncode == 0, undisturbed.output
    looks, seconds = int(undisturbed.output.split()[-2]), float(undisturbed.output.split()[-1])
    expected = names(place.folder)
    begin_again(verb, place.folder)
    few = FEW[verb] if LONG else -(-FEW[verb] // 2)
    for moment in moments(MOMENTS or few, looks, seconds):
        killed = place.run(moment, *command)
        assert killed.returncode in (-signal.SIGKILL, -signal.SIGALRM, 0), killed.output
        check(place.folder / target)
        if killed.returncode == 0:
            begin_again(verb, place.folder)
    again = place.run(0, *command)
    assert again.returncode == 0, again.output
    check(place.folder / target)
    assert names(place.folder) == expected
    assert place.hidden() == []
