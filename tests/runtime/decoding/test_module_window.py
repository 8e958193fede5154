"""A module with a window: rows of a prompt that nothing looks back at are left out, and no proposal changes by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.bundle import Bundle
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.runtime.decoding import decoder as decoding
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.serve.prompt_files import PromptFiles
from tests.helpers.prompts import LONG_STORY
from tests.helpers.windows import drop_soon

SAMPLE = Path(__file__).parents[3] / "samples" / "stories"
WINDOW, SPARE, LENGTH = 24, 8, 200
KINDS = {
    "float32": ExportOptions(module_window=WINDOW),
    "standard": ExportOptions("standard", module_window=WINDOW),
    "int8": ExportOptions(quantization=Quantization(8), compare=False, module_window=WINDOW, kv="int8"),
}
FAR = 10_000
"""More rows to spare than there are: none are left out."""


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param != "float32" and (reason := why_too_old("standard")):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("window") / "bundle"
    export(SAMPLE, folder, KINDS[request.param])
    return recycle_onnx.load(folder, threads=1)


@pytest.fixture
def ids(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(decoding, "SPARE_ROWS", SPARE)
    model.prefill_chunk = 32
    return model.encode(LONG_STORY)[:LENGTH]


def proposals(decoder: Decoder, prompt: list[int], steps: int = 6) -> list[np.ndarray]:
    """The module's logits behind a prompt, and behind tokens that the full model reads then."""
    decoder.prefill(prompt)
    logits = [decoder.start_recycling(7).copy()]
    for token in range(7, 7 + steps):
        decoder.full_step([token], keep=1)
        logits.append(decoder.recycle_step([token + 1]).copy())
    return logits


def whole(model: Model, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The proposals of a module that has read all of the prompt."""
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "SPARE_ROWS", FAR)
        fresh = model.decoder("verify")
        fresh.keep_all_rows()
        logits = proposals(fresh, prompt)
        assert fresh.recycler is not None
        assert fresh.recycler.rows_read >= len(prompt)
        return logits


def close(model: Model, some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    exact = model.bundle.manifest.precision == "int8"
    return all(
        np.array_equal(a, b) if exact else np.allclose(a, b, atol=1e-4) for a, b in zip(some, others, strict=True)
    )


def test_the_manifest_says_how_far_the_module_looks_back(model: Model, sample_bundle: Path) -> None:
    layers = model.bundle.manifest.graphs["recycler"].num_layers
    assert model.bundle.manifest.graphs["recycler"].reach == 1 + layers * (WINDOW - 1)
    assert Bundle.open(model.bundle.folder).manifest.graphs["full"].reach is None
    assert Bundle.open(sample_bundle).manifest.graphs["recycler"].reach is None


def test_rows_out_of_sight_are_left_out_and_proposals_stay(
    model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model.decoder("verify")
    assert close(model, proposals(decoder, ids), whole(model, ids, monkeypatch))
    assert decoder.recycler is not None
    reach = decoder.recycler.spec.reach
    assert reach is not None
    assert decoder.recycler.rows_read == reach + SPARE + 6  # the last ones of the prompt, and those behind it
    assert decoder.tokens.unread == LENGTH - reach - SPARE


def test_one_row_more_left_out_would_show(model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = whole(model, ids, monkeypatch)
    monkeypatch.setattr(decoding, "SPARE_ROWS", 0)
    assert close(model, proposals(model.decoder("verify"), ids), wanted)
    monkeypatch.setattr(decoding, "SPARE_ROWS", -1)
    assert not close(model, proposals(model.decoder("verify"), ids)[:1], wanted[:1])


@pytest.mark.parametrize("kept", [LENGTH - 3, LENGTH - SPARE - 1, 120, WINDOW, 3, 0])
def test_texts_that_go_back_into_them_are_read_again(
    kept: int, model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, other = model.decoder("verify"), [*ids[:kept], *ids[30:110]]
    proposals(decoder, ids)
    assert close(model, proposals(decoder, other), whole(model, other, monkeypatch))
    reach = decoder.recycler.spec.reach if decoder.recycler else None
    assert decoder.work.reused >= kept - 1 - (reach or 0)
    if kept > LENGTH - SPARE:
        assert decoder.work.reused >= kept - 1


@pytest.mark.parametrize("kept", [LENGTH - 3, LENGTH - SPARE - 1, LENGTH - 40, 120, WINDOW, 0])
@pytest.mark.parametrize("leaves_out", [True, False])
def test_so_are_texts_that_go_back_into_rows_that_it_has_dropped(
    leaves_out: bool, kept: int, model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_soon(monkeypatch)
    if not leaves_out:
        monkeypatch.setattr(decoding, "SPARE_ROWS", FAR)
    decoder, other = model.decoder("verify"), [*ids[:kept], *ids[30:110]]
    assert close(model, proposals(decoder, ids), whole(model, ids, monkeypatch))
    assert decoder.recycler is not None
    assert decoder.recycler.cache.dropped > LENGTH // 4
    assert close(model, proposals(decoder, other), whole(model, other, monkeypatch))
    assert close(model, proposals(decoder, ids), whole(model, ids, monkeypatch))


def test_copies_know_what_was_left_out(model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, copy = model.decoder("verify"), model.decoder("verify")
    proposals(decoder, ids)
    copy.restore(decoder.snapshot())
    assert copy.tokens.unread == decoder.tokens.unread > 0
    other = [*ids[:130], *ids[30:110]]
    assert close(model, proposals(copy, other), whole(model, other, monkeypatch))


@pytest.mark.parametrize(("left_out", "start", "unread"), [(0, 64, 0), (60, 64, 60), (80, 64, 80), (40, 64, 40)])
def test_rows_of_two_texts_know_what_either_left_out(
    left_out: int, start: int, unread: int, model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows behind `start` may look back at what their own text left out before it."""
    decoder, other = model.decoder("verify"), model.decoder("verify")
    for each in (decoder, other):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "SPARE_ROWS", FAR)
            proposals(each, ids)
    snapshot = other.snapshot()
    if left_out:
        snapshot[decoding.UNREAD] = np.array([left_out])
    decoder.restore(snapshot, start)
    assert decoder.tokens.unread == unread


@pytest.mark.parametrize("kept", [LENGTH, 140])
def test_prompt_files_know_it_too(
    kept: int, model: Model, ids: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    files = PromptFiles(model, 1e9)
    decoder, later = model.decoder("verify"), model.decoder("verify")
    proposals(decoder, ids)
    while (unsaved := files.unsaved(decoder)) is not None:
        assert files.write(unsaved)
    other = [*ids[:kept], *ids[30:60]]
    later.recall = files.restore
    assert close(model, proposals(later, other), whole(model, other, monkeypatch))
    assert later.work.reused > 0


def test_a_chat_goes_on_after_a_save_as_it_would_have(model: Model, ids: list[int], tmp_path: Path) -> None:
    texts = [LONG_STORY[:600], "And then?"]
    chat = model.conversation()
    list(chat.send(texts[0], strategy="alternate", max_new_tokens=8))
    assert chat.decoder.tokens.unread
    chat.save(tmp_path / "chat.safetensors")
    again = model.load_conversation(tmp_path / "chat.safetensors")
    answers = [
        [token.id for token in each.send(texts[1], strategy="alternate", max_new_tokens=12)] for each in (chat, again)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("strategy", ["verify", "auto", "lookup"])
def test_the_text_stays_that_of_full(strategy: str, model: Model, ids: list[int]) -> None:
    prompt = LONG_STORY[:700]
    wanted = model.generate(prompt, strategy="full", max_new_tokens=30)
    assert model.generate(prompt, strategy=strategy, max_new_tokens=30).tokens == wanted.tokens
