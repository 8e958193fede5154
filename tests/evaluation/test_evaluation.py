"""`eval`: every token is scored once, and what is counted adds up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recycle_onnx
from recycle_onnx.evaluation.acceptance import acceptance, acceptance_in_answers, acceptance_on_text
from recycle_onnx.evaluation.agreement import agreement
from recycle_onnx.evaluation.perplexity import perplexity
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.evaluation.texts import pieces
from recycle_onnx.export import DraftVocabulary, ExportOptions, export
from recycle_onnx.runtime.decoding.proposals import ModuleProposer
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers.command import assert_refused, run
from tests.helpers.prompts import LONG_STORY, story_prompts


class Letters:
    """As much of a model as `pieces` needs: a token a letter."""

    def __init__(self, context_length: int) -> None:
        self.bundle = self.manifest = self
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        return [int(letter) for letter in text]


@given(length=st.integers(1, 200), context=st.integers(2, 50))
def test_pieces_score_every_token_after_the_first_once_and_in_order(length: int, context: int) -> None:
    text = "".join(str(index % 10) for index in range(length))
    scored = []
    for ids, first in pieces(Letters(context), text):  # type: ignore[arg-type]
        assert len(ids) <= context
        scored += ids[first:]
    assert scored == [index % 10 for index in range(1, length)]


def test_perplexity_is_that_of_the_logits(sample_model: Model) -> None:
    text = LONG_STORY[:300]
    ids = sample_model.encode(text)
    half = sample_model.decoder("full").full
    logits = half.read(ids, None, np.empty((len(ids), half.spec.hidden_size), np.float32), keep=len(ids))
    odds = np.exp(logits[:-1].astype(np.float64))
    nats = -np.log(odds[np.arange(len(ids) - 1), ids[1:]] / odds.sum(-1))
    found = perplexity(sample_model, [text])
    assert found.perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / len(text.encode()), rel=1e-5)
    assert found.tokens == len(ids) - 1


def test_text_the_model_knows_is_likelier_than_noise(sample_model: Model) -> None:
    known, noise = (perplexity(sample_model, [text]) for text in (LONG_STORY[:300], "zq xv jk " * 30))
    assert known.perplexity < noise.perplexity
    assert known.module_perplexity is not None
    assert noise.module_perplexity is not None
    assert known.module_perplexity < noise.module_perplexity


def test_a_draft_vocabulary_shows_in_the_coverage(tmp_path: Path, sample_model: Model) -> None:
    (tmp_path / "text.txt").write_text(LONG_STORY)
    export(SAMPLE, tmp_path / "bundle", ExportOptions(draft_vocabulary=DraftVocabulary(100, tmp_path / "text.txt")))
    small = perplexity(recycle_onnx.load(tmp_path / "bundle"), [LONG_STORY[:300]])
    whole = perplexity(sample_model, [LONG_STORY[:300]])
    assert small.module_coverage is not None
    assert 0.3 < small.module_coverage < 1 == whole.module_coverage
    assert small.perplexity == whole.perplexity


def test_acceptance_counts_what_verify_counts(sample_model: Model) -> None:
    documents = story_prompts(6)
    found = acceptance(sample_model, documents, chain=1, new_tokens=40)
    stats = [
        sample_model.generate(sample_model.encode(text)[:16], strategy="verify", max_new_tokens=40).stats
        for text in documents
    ]
    assert found.by_place == [pytest.approx(sum(s.accepted for s in stats) / sum(s.proposed for s in stats), abs=0.03)]
    runs = sum(s.full_runs - 1 for s in stats)
    assert found.tokens_per_full_run == pytest.approx(sum(s.new_tokens - 1 for s in stats) / runs)


@pytest.mark.parametrize("chain", [1, 3])
def test_acceptance_in_answers_is_that_of_the_whole_prompts(chain: int, sample_model: Model) -> None:
    prompts = [sample_model.encode(text) for text in (LONG_STORY, *story_prompts(3))]
    found = acceptance_in_answers(sample_model, prompts, chain=chain, new_tokens=40)
    stats = [sample_model.generate(ids, strategy="verify", chain=chain, max_new_tokens=40).stats for ids in prompts]
    assert (found.text, found.chain, len(found.by_place)) == ("answers", chain, chain)
    runs = sum(s.full_runs - 1 for s in stats)
    assert found.tokens_per_full_run == pytest.approx(sum(s.new_tokens - 1 for s in stats) / runs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_in_a_text_is_that_of_fresh_chains_after_every_token(
    temperature: float, sample_model: Model
) -> None:
    ids = sample_model.encode(LONG_STORY)[:60]
    half, sampling = sample_model.decoder("full").full, Sampling(temperature)
    logits = half.read(ids, None, np.empty((60, half.spec.hidden_size), np.float32), keep=60)
    choices = [-1, *(sampling.choose(row, place + 1) for place, row in enumerate(logits))]
    tried, right = [0, 0, 0], [0, 0, 0]
    for start in range(17, 60):
        decoder = sample_model.decoder("verify")
        decoder.prefill(ids[: start - 1])
        proposed = ModuleProposer(decoder, sampling, 3, 0.0).propose([ids[start - 1]], start, 60 - start)
        for place, token in enumerate(proposed):
            tried[place] += 1
            right[place] += token == choices[start + place]
            if not token == choices[start + place] == ids[start + place]:
                break
    text = sample_model.tokenizer.decode(ids)
    found = acceptance_on_text(sample_model, [text], chain=3, new_tokens=44, temperature=temperature)
    assert found.text == "given"
    assert found.proposals == tried[0]
    assert found.by_place == [pytest.approx(r / t) for r, t in zip(right, tried, strict=True) if t]


def test_acceptance_on_given_text_is_how_often_both_halves_agree(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:80]
    both = score(sample_model, ids, first=17)
    assert both.accepted is not None
    found = acceptance_on_text(sample_model, [LONG_STORY], chain=1, new_tokens=64)
    assert found.proposals == len(both.accepted)
    assert found.by_place == [pytest.approx(both.accepted.mean())]


def test_a_later_place_counts_where_the_text_went_on_as_the_chain_did(sample_model: Model) -> None:
    told, noise = (acceptance_on_text(sample_model, [text], chain=2) for text in (LONG_STORY, "zq xv jk " * 30))
    assert len(told.by_place) == 2
    assert told.tokens_per_full_run == pytest.approx(1 + told.by_place[0] * (1 + told.by_place[1]))
    assert len(noise.by_place) <= 2
    assert noise.tokens_per_full_run < told.tokens_per_full_run


def test_a_document_of_one_token_has_nothing_to_accept(sample_model: Model) -> None:
    assert acceptance_on_text(sample_model, [""]).proposals == 0


def test_agreement_finds_the_first_difference_and_its_price(sample_model: Model) -> None:
    found = agreement(sample_model, story_prompts(8), new_tokens=48)
    assert 0 < found.tokens_until_difference < 48
    assert found.nats_lost_interval[0] <= found.nats_lost <= found.nats_lost_interval[1]
    assert found.nats_lost > 0  # greedy text of the base is likelier to the base


def test_the_module_accepts_where_its_best_token_is_the_full_models(sample_model: Model) -> None:
    found = score(sample_model, sample_model.encode(LONG_STORY)[:100])
    assert found.accepted is not None
    assert found.accepted.mean() > 0.5
    assert len(found.nats) == 99
    assert len(found.accepted) == 98  # the second token has no hidden state two tokens before it


def test_the_command_reports_and_writes_markdown(sample_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(story_prompts(4)))
    every = ("--perplexity", text, "--acceptance", text, "--agreement", text, "--new-tokens", 20)
    result = run("eval", sample_bundle, *every, "--report", tmp_path / "report.md", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["perplexity"]["documents"] == found["agreement"]["texts"] == 4
    kinds = [(kind["text"], kind["temperature"]) for kind in found["acceptance"]]
    assert kinds == [("own", 0), ("own", 1), ("given", 0), ("given", 1)]
    report = (tmp_path / "report.md").read_text()
    assert "| own text, greedy |" in report
    assert "](report-acceptance.png)" in report
    assert (tmp_path / "report-acceptance.png").read_bytes().startswith(b"\x89PNG")
    assert "bits a byte" in run("eval", SAMPLE, "--perplexity", text).stdout


def test_the_command_counts_acceptance_in_answers_to_prompts(sample_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"ask": text}) for text in story_prompts(3)))
    given_ = ("--prompts", tmp_path / "prompts.jsonl", "--field", "ask", "--limit", 2, "--chain", 2, "--new-tokens", 12)
    result = run("eval", sample_bundle, *given_, "--temperature", 0.8, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["answers"]
    assert [(kind["temperature"], kind["chain"]) for kind in found] == [(0, 1), (0, 2), (0.8, 1), (0.8, 2)]
    run("eval", sample_bundle, *given_, "--report", tmp_path / "report.md")
    assert "| answers, sampled at 1, chain 2 |" in (tmp_path / "report.md").read_text()


def test_bad_requests_are_refused(sample_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" <|endoftext|> ")
    assert_refused(run("eval", sample_bundle), 2, "nothing to measure")
    assert_refused(run("eval", sample_bundle, "--perplexity", tmp_path / "empty.txt"), 2, "empty.txt", "no text")
    assert_refused(run("eval", sample_bundle, "--perplexity", tmp_path / "none.txt"), 2, "no such text file")
