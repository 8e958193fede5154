"""The comparison with peers: what a worker answers, what is kept, and what the table says. (Peers are not needed.)"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.evaluation.scoring import score
from recycle_onnx.runtime.model import Model
from tests.benchmarks.conftest import BENCHMARKS
from tests.helpers import tiny
from tests.helpers.prompts import LONG_STORY


@pytest.fixture
def real() -> Any:
    return importlib.import_module("real")


@pytest.fixture
def ours(sample_bundle: Path, real: Any) -> Any:
    worker = real.Worker(sys.executable, BENCHMARKS / "peers" / "ours.py", sample_bundle, 1)
    yield worker
    worker.close()


def test_a_worker_generates_scores_and_stops(ours: Any, sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:40]
    expected = sample_model.generate(ids, strategy="full", max_new_tokens=20, stop_ids=()).tokens
    for strategy in ("full", "verify"):
        answer = ours.ask(prompt=ids, new_tokens=20, strategy=strategy)
        assert answer["tokens"] == expected
        assert answer["tokens_per_second"] > 0
    stopped = ours.ask(prompt=ids, new_tokens=20, strategy="full", stop=[expected[10]])["tokens"]
    assert stopped == expected[: expected.index(expected[10]) + 1]
    found, both = ours.ask(score=ids), score(sample_model, ids)
    assert found["tokens"] == 39
    assert found["nats"] == pytest.approx(both.nats.sum(), abs=1e-3)
    assert both.module is not None
    half = (both.nats.sum() + both.nats[0] + both.module.nats.sum()) / 2  # the first token is the full model's anyway
    assert found["alternate_nats"] == pytest.approx(half, abs=1e-2)


def test_steps_behind_a_text_of_each_length_take_turns(sample_bundle: Path) -> None:
    """Two engines that differ in nothing: a table with the second one's time as a part of the first's."""
    long_texts = importlib.import_module("long_texts")
    workers = long_texts.started({"a": str(sample_bundle), "b": str(sample_bundle)}, (), "", 40, 1)
    samples = [long_texts.timed(workers, length, 3) for length in (40, 8)]
    for worker in workers.values():
        worker.close()
    assert all(len(times) == 3 and min(times) > 0 for sample in samples for times in sample.values())
    assert long_texts.table(samples[0], ["a", "b"]).count("\n| ") == 2
    even = {(name, count): [3.0 * count * (1 + (name == "b"))] * 3 for name in "ab" for count in (1, 2)}
    assert "| b | 6.00 ms | 12.00 ms | 2.00 | 2.00 |" in long_texts.table(even, ["a", "b"])


def test_rounds_go_on_where_they_broke_off(ours: Any, real: Any, tmp_path: Path, sample_model: Model) -> None:
    engines = {name: real.Engine("ours", (), (), {"strategy": name}) for name in ("full", "lookup")}
    prompts, kept = [sample_model.encode(LONG_STORY)[:20]] * 3, tmp_path / "rounds.jsonl"
    request = {"new_tokens": 12, "stop": []}
    first = real.rounds(kept, engines, {"ours": ours}, prompts[:1], request)
    runs = real.rounds(kept, engines, {"ours": ours}, prompts, request)
    assert runs[0] == first[0]
    assert [run["full"]["tokens"] for run in runs] == [12, 12, 12]
    assert len(kept.read_text().splitlines()) == 3
    with pytest.raises(SystemExit, match="other engines"):
        real.rounds(kept, {"full": engines["full"]}, {"ours": ours}, prompts, request)


def test_ratios_are_paired_over_answers_that_both_give_at_length(real: Any) -> None:
    def run(a: float, b: float, tokens: int) -> dict[str, dict[str, float]]:
        return {
            "a": {"tokens": 20, "tokens_per_second": a},
            "b": {"tokens": tokens, "tokens_per_second": b},
        }

    runs = [run(10, 5, 20), run(30, 10, 20), run(40, 10, 20), run(1, 100, 3)]
    found = real.result("a", real.Engine("m", (), (), {}), 12.5, runs, ["b", "a"])
    assert found["answers"] == 4
    assert found["against"]["b"]["ratio"] == 3
    assert found["against"]["a"]["ratio"] == 1
    line = real.table({"a": found}, ["b", "a"]).splitlines()[-1]
    assert line.startswith("| a | 0 | 12.500 | 20 (")
    assert line.endswith("| 1 |")


def test_perplexities_are_kept_by_model(ours: Any, real: Any, tmp_path: Path, sample_model: Model) -> None:
    engines = {name: real.Engine("ours", (), (), {"strategy": name}) for name in ("full", "alternate")}
    windows = [sample_model.encode(LONG_STORY)[:30]]
    found = real.perplexities(tmp_path / "kept.jsonl", engines, {"ours": ours}, windows)
    assert 1 < found["full"] != found["alternate"] > 1
    kept = json.loads((tmp_path / "kept.jsonl").read_text())
    (tmp_path / "kept.jsonl").write_text(json.dumps({**kept, "nats": 7.0}) + "\n")
    assert real.perplexities(tmp_path / "kept.jsonl", engines, {"ours": ours}, windows)["full"] == 7.0


def test_a_model_for_llama_cpp_has_four_bits_and_an_output_of_eight(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    folder = tiny.write_base(
        tmp_path / "base", tiny.tiny_config(hidden_size=64, intermediate_size=64, head_dim=32, tied_embeddings=False)
    )
    command = [sys.executable, BENCHMARKS / "peers" / "write_gguf.py", folder, tmp_path / "model.gguf"]
    subprocess.run(command, check=True, cwd=tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["output.weight"] == "Q8_0"
    assert {kinds[name] for name in ("token_embd.weight", "blk.1.attn_q.weight", "blk.0.ffn_down.weight")} == {"Q4_0"}
    assert reader.fields["tokenizer.ggml.model"].contents() == "no_vocab"
