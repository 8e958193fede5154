"""A text is scored the same whatever was read before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.evaluation.scoring import Predictions, Scorer, score
from recycle_onnx.export import DraftVocabulary, ExportOptions, export
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers.prompts import LONG_STORY


def assert_same(found: Predictions | None, expected: Predictions | None) -> None:
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found.nats, expected.nats, atol=1e-4)
    np.testing.assert_allclose(found.worst_nats, expected.worst_nats, atol=1e-4)
    assert (found.best == expected.best).all()


def test_what_texts_have_in_common_is_not_read_again_and_changes_nothing(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:60]
    other = [*ids[:40], *reversed(ids[40:])]
    scorer = Scorer(sample_model)
    for text, first in (
        (ids, 30),
        (other, 40),
        (other, 5),
        (ids, 41),
        (ids[:50], 49),
        (ids, 1),
        (ids[:3], 2),
        ([*ids[:2], 7], 2),
        (ids, 59),
        ([*ids[:59], 7], 59),
        ([*ids[:59], 7, 9], 59),
        ([*ids[:59], 8, 3], 60),
        ([ids[0], 7, 9], 1),
        ([ids[0], 8, 9], 1),
    ):
        found, expected = scorer.score(text, first), score(sample_model, text, first)
        assert_same(found.full, expected.full)
        assert_same(found.module, expected.module)


def test_choices_of_a_single_token_take_one_run_of_each_half(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:20]
    scorer = Scorer(sample_model)
    halves = (scorer._decoder.full, scorer._decoder.recycler)
    for token, rows in ((7, 20), (8, 20), (9, 20)):
        scorer.score([*ids, token], 20)
        assert [half and half.rows_read for half in halves] == [rows, rows - 1]
    scorer.score([*ids, 7, 8, 9], 20)
    assert [half and half.rows_read for half in halves] == [22, 21]  # what lies before the choices is not read again


def test_the_scores_from_a_place_on_are_the_last_ones_of_all(sample_model: Model) -> None:
    ids = sample_model.encode(LONG_STORY)[:40]
    whole, part = score(sample_model, ids), score(sample_model, ids, first=25)
    assert len(part.nats) == 15
    np.testing.assert_allclose(part.nats, whole.nats[-15:], atol=1e-4)
    assert whole.module is not None
    assert part.module is not None
    np.testing.assert_allclose(part.module.nats, whole.module.nats[-15:], atol=1e-4)


def test_a_text_may_have_one_token_more_than_the_context(tiny_bundle: Path) -> None:
    model = recycle_onnx.load(tiny_bundle)
    context = model.bundle.manifest.context_length
    assert len(score(model, [1] * (context + 1), first=context).nats) == 1
    with pytest.raises(InputError, match="context ends"):
        score(model, [1] * (context + 2))


def test_two_tokens_leave_the_module_nothing_to_say(sample_model: Model) -> None:
    found = score(sample_model, [0, 5])
    assert len(found.nats) == 1
    assert found.module is not None
    assert len(found.module.nats) == 0


def test_outside_a_draft_vocabulary_tokens_are_impossible_and_the_worst_of_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(LONG_STORY)
    export(SAMPLE, tmp_path / "bundle", ExportOptions(draft_vocabulary=DraftVocabulary(100, tmp_path / "text.txt")))
    model = recycle_onnx.load(tmp_path / "bundle")
    draft = model.bundle.manifest.draft_vocabulary
    assert draft is not None
    ids = model.encode(LONG_STORY)[:120]
    module = score(model, ids).module
    assert module is not None
    assert (np.isinf(module.nats) == ~np.isin(ids[2:], draft)).all()
    assert np.isin(module.best, draft).all()
    assert np.isfinite(module.worst_nats).all()
    named = np.isfinite(module.nats)
    assert (module.nats[named] <= module.worst_nats[named]).all()
