"""Beginnings to measure with: of the length asked for, no two alike, and what a user of the model would send."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recycle_onnx.evaluation import openings
from recycle_onnx.evaluation.openings import TEXTS, openings_of, questions
from recycle_onnx.runtime.loading import load
from recycle_onnx.runtime.model import Model

LENGTH = 60


@pytest.fixture(scope="module")
def chat_model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("chat") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} |{% endfor %}")
    return load(folder)


def test_a_model_that_answers_is_asked_behind_text_of_its_own(chat_model: Model) -> None:
    texts = openings_of(chat_model, LENGTH)
    asked = questions(chat_model)
    assert [len(text) for text in texts] == [LENGTH] * TEXTS
    assert len({tuple(text) for text in texts}) == TEXTS
    for text, question in zip(texts, asked, strict=True):
        end = question[-LENGTH:]
        assert text[LENGTH - len(end) :] == end


def test_another_model_goes_on_from_several_places_of_its_own_text(sample_bundle: Path) -> None:
    model = load(sample_bundle)
    texts = openings_of(model, 16)
    assert [len(text) for text in texts] == [16] * TEXTS
    assert len({tuple(text) for text in texts}) == TEXTS
    assert texts == openings_of(model, 16), "the same every time"


def test_beginnings_as_long_as_the_context_fit(tiny_bundle: Path) -> None:
    model = load(tiny_bundle)
    most = model.bundle.manifest.context_length
    assert {len(text) for text in openings_of(model, most)} == {most}


def test_without_jinja2_the_own_text_stands_alone(chat_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "is_installed", lambda extra: extra != "chat")
    ends = [ids[-8:] for ids in questions(chat_model)]
    assert not any(text[-8:] in ends for text in openings_of(chat_model, LENGTH))
