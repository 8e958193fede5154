"""Our model in lm-evaluation-harness against the harness's own Hugging Face model: same tasks, prompts, likelihoods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.evaluation.alternating import Decoding
from recycle_onnx.evaluation.task_rows import read_task
from recycle_onnx.export import export
from recycle_onnx.runtime.generation import Result
from tests.helpers.command import assert_one_error, run
from tests.helpers.prompts import LONG_STORY
from tests.reference.models import SAMPLE, shared_folder

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `eval`)")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from recycle_onnx.evaluation.harness import RecycleLM, evaluate, load_task  # noqa: E402

ROWS = {"lambada": 200, "piqa": 200, "hellaswag": 20, "arc_easy": 20, "openbookqa": 20, "boolq": 10}
FEWER = {"lambada": 50, "piqa": 50}
"""Rows of the sample, which takes longer (all 200 agree too)."""
TOLERANCE = 1e-3
PIQA = [
    {"query": "Question: Who sang?\n", "choices": ["The bird sang a song.", "Qx zv kk wq jq."], "gold": 0},
    {"query": "Question: What did the girl do?\n", "choices": ["Vj xq pz.", "She played with her friend."], "gold": 1},
] * 8
"""Questions that the sample can answer: one choice is no English."""
MODELS = ("sample", "stories260K")


def folder_of(name: str) -> Path:
    return SAMPLE if name == "sample" else shared_folder("models/stories260K")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RecycleLM, HFLM]]:
    """Our model and the harness's, of one checkpoint, made once."""
    made: dict[str, tuple[RecycleLM, HFLM]] = {}

    def pair(name: str) -> tuple[RecycleLM, HFLM]:
        if name not in made:
            bundle = tmp_path_factory.mktemp(name) / "bundle"
            export(folder_of(name), bundle)
            made[name] = (RecycleLM(recycle_onnx.load(bundle)), hugging_face(folder_of(name)))
        return made[name]

    return pair


def hugging_face(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder), device="cpu", batch_size=1, dtype="float32")


def likelihoods(samples: list[dict[str, Any]]) -> np.ndarray:
    return np.array([float(answer[0]) for sample in samples for answer in sample["filtered_resps"]])


def predictions(samples: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """What each row counts as, and which continuations greedy decoding would say."""
    metrics = [name for name in ("acc", "acc_norm") if name in samples[0]]
    return [
        (*(sample[name] for name in metrics), *(bool(greedy) for _, greedy in sample["filtered_resps"]))
        for sample in samples
    ]


@pytest.mark.parametrize("task_name", ROWS)
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_as_likely_as_to_the_harness_own_model(
    name: str, task_name: str, pairs: Callable[[str], tuple[RecycleLM, HFLM]]
) -> None:
    count = (ROWS | FEWER if name == "sample" else ROWS)[task_name]
    task = load_task(task_name, read_task(task_name, shared_folder("eval"), count))
    ours, theirs = (evaluate(lm, task, None) for lm in pairs(name))
    assert len(ours) == count
    difference = np.abs(likelihoods(ours) - likelihoods(theirs)).max()
    print(f"{name} {task_name}: {len(likelihoods(ours))} likelihoods, largest difference {difference:.1e}")
    assert difference < TOLERANCE
    assert predictions(ours) == predictions(theirs)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


AWKWARD = (
    ("", "Once upon a time"),
    ("Once upon a time ", "there was"),
    ("The end", "."),
    ("", "\n"),
    (LONG_STORY * 4, " The end."),
)
"""No context, a space before the boundary, no space, an odd token, more than the context holds."""


@pytest.mark.parametrize("name", MODELS)
def test_awkward_texts_become_the_same_tokens(name: str, pairs: Callable[[str], tuple[RecycleLM, HFLM]]) -> None:
    ours, theirs = (lm.loglikelihood(requests("loglikelihood", *AWKWARD)) for lm in pairs(name))
    assert [likelihood for likelihood, _ in ours] == pytest.approx([answer[0] for answer in theirs], abs=TOLERANCE)
    assert [greedy for _, greedy in ours] == [answer[1] for answer in theirs]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_brings_its_own_beginning_gets_no_second_one(
    name: str, pairs: Callable[[str], tuple[RecycleLM, HFLM]]
) -> None:
    ours, theirs = pairs(name)
    text = ours.tokenizer.decode([ours.prefix_token_id], skip_special_tokens=False) + "Once upon a time"
    assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert ours.eot_token_id == theirs.eot_token_id


@pytest.mark.parametrize("name", MODELS)
def test_a_text_longer_than_the_context_is_rolled_over_likewise(
    name: str, pairs: Callable[[str], tuple[RecycleLM, HFLM]]
) -> None:
    ours, theirs = (
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", (LONG_STORY * 4,), (LONG_STORY[:99],)))
        for lm in pairs(name)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_generation_ends_where_the_harness_own_ends(name: str, pairs: Callable[[str], tuple[RecycleLM, HFLM]]) -> None:
    options = {"until": ["."], "max_gen_toks": 40}
    asked = requests("generate_until", ("Once upon a time", options), ("The dog", options))
    ours, theirs = (lm.generate_until(asked) for lm in pairs(name))
    assert ours == theirs


@pytest.mark.parametrize(("decoding", "strategy"), [("full", "full"), ("full_first", "alternate")])
def test_texts_are_written_by_what_the_answer_is_filed_under(
    decoding: Decoding, strategy: str, sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recycle_onnx.load(sample_bundle)
    results, generate = list[Result](), model.generate

    def listening(*args: Any, **options: Any) -> Result:
        results.append(generate(*args, **options))
        return results[-1]

    monkeypatch.setattr(model, "generate", listening)
    RecycleLM(model, decoding).generate_until(
        requests("generate_until", ("Once upon a time", {"until": ["."], "max_gen_toks": 8}))
    )
    assert [result.strategy for result in results] == [strategy]


def test_the_same_class_works_with_simple_evaluate(tmp_path: Path, sample_bundle: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text("\n".join(json.dumps(row) for row in PIQA))
    task = load_task("piqa", read_task("piqa", tmp_path))
    lm = RecycleLM(recycle_onnx.load(sample_bundle))
    manager = TaskManager(include_defaults=False)  # to read all the harness's tasks takes ten seconds
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    assert found["results"]["piqa"]["acc,none"] == 1.0
    assert found["samples"]["piqa"][0]["arguments"][0] == ("Question: Who sang?\nAnswer:", " The bird sang a song.")


def test_the_command_compares_alternate_with_the_full_model(tmp_path: Path, sample_bundle: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text("\n".join(json.dumps(row) for row in PIQA))
    asked = ("--tasks", "piqa", "--data-folder", tmp_path, "--limit", 12)
    result = run("eval", sample_bundle, *asked, "--report", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    acc, normalised = json.loads(result.stdout)["tasks"]
    assert (acc["metric"], normalised["metric"]) == ("acc", "acc_norm")
    assert acc["rows"] == 12
    assert acc["full"][0] == acc["full_first"][0] == acc["alternate"][0] == 1.0
    assert acc["informative"]
    assert acc["difference"] == [0, 0, 0]
    assert "| piqa acc | 12 | 50.0 | 100.0 ± 0.0 |" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "tasks.png").exists()
    table = run("eval", SAMPLE, *asked).stdout
    assert "Zero-shot tasks" in table


def test_the_harness_brings_no_torch() -> None:
    code = (
        "import sys, recycle_onnx.evaluation.harness; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_data_that_cannot_be_fetched_are_asked_for(tmp_path: Path, sample_bundle: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "recycle_onnx", "eval", str(sample_bundle), "--tasks", "piqa"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert_one_error(result.stderr, "piqa: cannot fetch its data set", "--data-folder")


def test_a_perturbed_weight_shows(tmp_path: Path, pairs: Callable[[str], tuple[RecycleLM, HFLM]]) -> None:
    theirs = hugging_face(SAMPLE)
    theirs.model.model.layers[3].mlp.down_proj.weight.data[0, 0] += 0.5
    task = load_task("piqa", read_task("piqa", shared_folder("eval"), 20))
    ours = pairs("sample")[0]
    assert np.abs(likelihoods(evaluate(ours, task, None)) - likelihoods(evaluate(theirs, task, None))).max() > TOLERANCE


def test_a_shifted_token_shows(pairs: Callable[[str], tuple[RecycleLM, HFLM]]) -> None:
    class Shifted(RecycleLM):
        def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
            ids, first = super()._cut(context, continuation)
            return ids, first - 1

    task = load_task("piqa", read_task("piqa", shared_folder("eval"), 20))
    ours, theirs = pairs("sample")
    shifted = likelihoods(evaluate(Shifted(ours.model), task, None))
    assert np.abs(shifted - likelihoods(evaluate(theirs, task, None))).max() > TOLERANCE
