"""`eval` against transformers and torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, LlamaForCausalLM

import recycle_onnx
from recycle_onnx.evaluation.alternating import Decoding, verdict
from recycle_onnx.evaluation.perplexity import perplexity
from recycle_onnx.evaluation.scoring import score
from recycle_onnx.export import export
from tests.helpers.prompts import LONG_STORY, story_prompts
from tests.reference.models import SAMPLE, shared_folder, torch_model

DOCUMENTS = [LONG_STORY[:600], *story_prompts(5)]


@pytest.mark.parametrize("name", ["sample", "stories260K"])
def test_perplexity_is_transformers_own(name: str, tmp_path: Path) -> None:
    folder = SAMPLE if name == "sample" else shared_folder("models/stories260K")
    export(folder, tmp_path / "bundle")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # the sample is stored in float16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, tokens = 0.0, 0
    for document in DOCUMENTS:
        ids = torch.tensor([tokenizer(document).input_ids])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = perplexity(recycle_onnx.load(tmp_path / "bundle"), DOCUMENTS)
    assert found.tokens == tokens
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_the_modules_perplexity_is_torchs(sample_bundle: Path) -> None:
    runtime, model = recycle_onnx.load(sample_bundle), torch_model(SAMPLE)
    nats, tokens, agreed, rows = 0.0, 0, 0, 0
    for document in DOCUMENTS:
        ids = torch.tensor([runtime.encode(document)])
        with torch.no_grad():
            full = model.full(ids)
            module = model.recycle(ids[:, 1:], full.hidden_states[:, :-1])
        nats += float(functional.cross_entropy(module.logits[0, :-1], ids[0, 2:], reduction="sum"))
        tokens += ids.shape[1] - 2
        agreed += int((module.logits[0, :-1].argmax(-1) == full.logits[0, 1:-1].argmax(-1)).sum())
        rows += ids.shape[1] - 2
    found = perplexity(runtime, DOCUMENTS)
    assert found.module_perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.acceptance == pytest.approx(agreed / rows)


@pytest.mark.parametrize(
    ("decoding", "theirs"), [("full", ()), ("full_first", (1, 3, 5)), ("module_first", (0, 2, 4, 6))]
)
def test_by_turns_every_token_is_as_likely_as_to_torchs_half(
    decoding: Decoding, theirs: tuple[int, ...], sample_bundle: Path
) -> None:
    runtime, model = recycle_onnx.load(sample_bundle), torch_model(SAMPLE)
    for document in DOCUMENTS:
        ids = runtime.encode(document)[:20]
        first = len(ids) - 7
        with torch.no_grad():
            full = model.full(torch.tensor([ids]))
            module = model.recycle(torch.tensor([ids[1:]]), full.hidden_states[:, :-1])
        rows = [
            module.logits[0, place + first - 2] if place in theirs else full.logits[0, place + first - 1]
            for place in range(7)
        ]
        expected = sum(float(row.log_softmax(-1)[ids[first + place]]) for place, row in enumerate(rows))
        found = verdict(score(runtime, ids, first), ids[first:], decoding)
        assert found.log_probability == pytest.approx(expected, abs=1e-3)
        assert found.greedy == all(int(row.argmax()) == ids[first + place] for place, row in enumerate(rows))
