"""Layers with a window drop rows that no later token sees, and nothing that comes out changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.contract import DROPPED_ROWS
from recycle_onnx.errors import InputError
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.decoding.half import Half
from recycle_onnx.runtime.decoding.kv_cache import SPARE as SECOND_ROW
from recycle_onnx.runtime.decoding.window_rows import WindowRows, cache_bytes
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.memory import HostBuffer
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.prompt_files import PromptFiles
from recycle_onnx.serve.prompt_saver import PromptSaver
from tests.helpers.patience import PATIENCE
from tests.helpers.windows import CONTEXT, MOST, RUN, SPARE, STEP, WINDOW, WINDOWS, drop_soon, write_checkpoint

LENGTH = 150
KINDS = {
    "ort": ExportOptions(),
    "standard": ExportOptions("standard"),
    "int8": ExportOptions(quantization=Quantization(8), compare=False),
    "int8 caches": ExportOptions(quantization=Quantization(8), compare=False, kv="int8"),
}
ENDLESS: dict[str, Any] = {"logit_bias": {0: -100.0}}
"""Settings with which no answer ends by itself."""
IDS = np.random.default_rng(5).integers(1, 300, LENGTH).tolist()
OTHERS = np.random.default_rng(6).integers(1, 300, LENGTH).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("windows") / "model")


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    if request.param in ("standard", "int8 caches") and (reason := why_too_old("standard")):
        pytest.skip(reason)
    folder: Path = checkpoint.parent / request.param.replace(" ", "-")
    export(checkpoint, folder, KINDS[request.param])
    return folder


@pytest.fixture
def model(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    drop_soon(monkeypatch)
    with recycle_onnx.load(bundle, threads=1) as model:
        model.prefill_chunk = RUN
        yield model


def outcome(decoder: Decoder, ids: list[int]) -> list[np.ndarray]:
    """Logits of both halves behind a prompt, and behind runs on one to three tokens of which some are taken back."""
    logits = [decoder.prefill(ids[:-12]).copy(), decoder.start_recycling(ids[-12]).copy()]
    at = len(ids) - 12
    for size in (1, 2, 3, 1, 2):
        logits.append(decoder.full_step(ids[at : at + size], keep=size).copy())
        decoder.full_step([7, 8, 9], keep=1)
        decoder.keep(at + size)
        logits.append(decoder.full_step([ids[at + size]], keep=1).copy())
        decoder.keep(at + size)
        logits.append(decoder.recycle_step([ids[at + size]]).copy())
        at += size
    return logits


def whole(model: Model, ids: list[int]) -> list[np.ndarray]:
    decoder = model.decoder("verify")
    decoder.keep_all_rows()
    logits = outcome(decoder, ids)
    assert not decoder.has_dropped_rows
    return logits


def close(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, atol=2e-4) for a, b in zip(some, others, strict=True))


def halves(decoder: Decoder) -> tuple[Half, Half]:
    assert decoder.recycler is not None
    return decoder.full, decoder.recycler


def test_the_manifest_says_which_layers_have_a_window(model: Model, sample_bundle: Path) -> None:
    graphs = model.bundle.manifest.graphs
    assert graphs["full"].windows == WINDOWS
    assert graphs["recycler"].windows == (WINDOW,)
    assert DROPPED_ROWS in graphs["full"].optional_inputs()
    assert "windows" not in (sample_bundle / "recycle.json").read_text()
    assert DROPPED_ROWS not in recycle_onnx.load(sample_bundle).bundle.manifest.graphs["full"].optional_inputs()


def test_their_buffers_stop_growing(model: Model) -> None:
    decoder = model.decoder("verify")
    outcome(decoder, IDS)
    for half in halves(decoder):
        assert half.cache.dropped >= LENGTH - 12 - MOST
        for array, has_window in zip(half.cache.arrays, half.spec.has_window(), strict=True):
            assert (array.shape[2] <= MOST + max(SECOND_ROW, STEP)) == has_window
        assert half.cache.nbytes == sum(array.nbytes for array in half.cache.arrays)


def test_what_they_take_is_known_beforehand(model: Model) -> None:
    spec = model.bundle.manifest.graphs["full"]
    assert cache_bytes(spec, MOST) == MOST * spec.row_bytes
    assert cache_bytes(spec, LENGTH) == (2 * MOST + LENGTH) * spec.row_bytes // 3


def test_logits_are_those_with_all_rows(model: Model) -> None:
    decoder = model.decoder("verify")
    assert close(outcome(decoder, IDS), whole(model, IDS))
    assert decoder.has_dropped_rows


def test_a_row_too_many_that_is_dropped_shows_or_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = whole(model, IDS)
    monkeypatch.setattr(WindowRows, "needed", lambda self, length: max(0, length - self.window + 2))
    with pytest.raises(RuntimeError, match="rows from"):
        outcome(model.decoder("verify"), IDS)
    monkeypatch.setattr(WindowRows, "are_enough", lambda self, length: True)
    assert not close(outcome(model.decoder("verify"), IDS)[:1], wanted[:1])


@pytest.mark.parametrize("kept", [LENGTH - 12, LENGTH - 14, LENGTH - SPARE - 12, 60, WINDOW, 1, 0])
def test_a_text_that_goes_back_further_is_read_again(kept: int, model: Model) -> None:
    decoder, other = model.decoder("verify"), [*IDS[:kept], *OTHERS[kept:]]
    outcome(decoder, IDS)
    assert close(outcome(decoder, other), whole(model, other))
    if kept >= LENGTH - 14:
        assert decoder.work.reused >= kept - 1
    if kept <= 60:
        assert decoder.work.reused == 0


def test_a_shorter_text_after_a_long_one_keeps_all_its_rows(model: Model) -> None:
    decoder = model.decoder("verify")
    outcome(decoder, IDS)
    assert close(outcome(decoder, OTHERS[:30]), whole(model, OTHERS[:30]))
    assert not decoder.has_dropped_rows


def test_copies_go_on_to_the_bit(model: Model) -> None:
    decoder, copy, later = (model.decoder("verify") for _ in range(3))
    outcome(decoder, IDS)
    snapshot = {name: array.copy() for name, array in decoder.snapshot().items()}
    assert snapshot["full.dropped"] == halves(decoder)[0].cache.dropped > 0
    longer = [*decoder.tokens.full, *OTHERS]
    for one in (copy, later):
        one.restore(snapshot)
        assert one.tokens.full == decoder.tokens.full
    wanted = outcome(decoder, longer[:LENGTH])
    assert all(np.array_equal(a, b) for a, b in zip(wanted, outcome(copy, longer[:LENGTH]), strict=True))
    assert copy.work.reused > 0
    assert close(outcome(later, [*IDS[:40], *OTHERS[:60]]), whole(model, [*IDS[:40], *OTHERS[:60]]))


def test_a_copy_that_needs_all_rows_reads_again(model: Model) -> None:
    decoder, copy = model.decoder("verify"), model.decoder("verify")
    copy.keep_all_rows()
    outcome(decoder, IDS)
    copy.restore(decoder.snapshot())
    assert close(outcome(copy, IDS), whole(model, IDS))
    assert copy.work.reused == 0


def test_where_none_may_be_dropped_all_are_kept(model: Model) -> None:
    decoder, copy, dropping = (model.decoder("verify") for _ in range(3))
    outcome(dropping, IDS)
    decoder.full.cache.may_drop = copy.full.cache.may_drop = lambda: False
    assert close(outcome(decoder, IDS), whole(model, IDS))
    assert decoder.full.cache.window is None
    assert all(array.shape[2] >= LENGTH - 12 for array in decoder.full.cache.arrays)
    copy.restore(dropping.snapshot())
    assert copy.full.cache.dropped == 0
    assert close(outcome(copy, IDS), whole(model, IDS))


def test_nobody_asks_before_rows_could_be_dropped(model: Model) -> None:
    decoder, asked = model.decoder("verify"), count()
    decoder.full.cache.may_drop = lambda: next(asked) >= 0
    outcome(decoder, IDS[:30])
    assert next(asked) == 0
    outcome(decoder, IDS)
    assert decoder.full.cache.dropped
    assert next(asked) == 2


def test_a_copy_of_all_rows_drops_those_it_does_not_need(model: Model) -> None:
    decoder, copy = model.decoder("verify"), model.decoder("verify")
    decoder.keep_all_rows()
    outcome(decoder, IDS)
    copy.restore(decoder.snapshot())
    assert copy.has_dropped_rows
    assert close(outcome(copy, IDS), whole(model, IDS))
    assert copy.work.reused > 0


def test_what_is_left_of_a_text_after_a_crop_too_far_is_not_copied(model: Model) -> None:
    decoder, copy = model.decoder("verify"), model.decoder("verify")
    outcome(decoder, IDS)
    decoder.keep(40)
    copy.restore(decoder.snapshot())
    assert copy.tokens.full == []
    assert close(outcome(copy, IDS), whole(model, IDS))


def test_a_step_behind_rows_that_are_gone_is_refused(model: Model) -> None:
    decoder = model.decoder("verify")
    outcome(decoder, IDS)
    decoder.keep(40)
    with pytest.raises(RuntimeError, match="40 tokens are kept, and layers with a window have rows from"):
        decoder.full_step([1], keep=1)


@pytest.mark.parametrize("writes", range(6))
def test_an_interruption_while_rows_move_leaves_nothing_wrong(
    writes: int, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model.decoder("verify")
    outcome(decoder, IDS)
    write, calls = HostBuffer.write_rows, count()

    def interrupted(self: HostBuffer, rows: np.ndarray, start: int = 0) -> None:
        if next(calls) == writes:
            raise KeyboardInterrupt
        write(self, rows, start)

    longer = [*decoder.tokens.full, *OTHERS[:60]]
    with monkeypatch.context() as patch:
        patch.setattr(HostBuffer, "write_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.prefill(longer)
    assert close(outcome(decoder, longer), whole(model, longer))


@pytest.mark.parametrize("strategy", ["verify", "auto", "lookup", "alternate"])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.9, "seed": 4}], ids=["greedy", "sampled"])
def test_texts_are_those_with_all_rows(
    strategy: str, sampled: dict[str, Any], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, settings = "the cat sat on the mat, " * 4, {"max_new_tokens": 60, **ENDLESS, **sampled}
    decoder = model.decoder(strategy)
    decoder.keep_all_rows()
    wanted = [token.id for token in model.stream(prompt, strategy=strategy, decoder=decoder, **settings)]
    dropping = model.decoder(strategy)
    tokens = [token.id for token in model.stream(prompt, strategy=strategy, decoder=dropping, **settings)]
    assert tokens == wanted
    assert dropping.has_dropped_rows
    if strategy != "alternate":
        assert model.generate(prompt, strategy="full", **settings).tokens == wanted


def test_a_chat_goes_on_after_a_save_and_a_fork(model: Model, tmp_path: Path) -> None:
    chat = model.conversation()
    list(chat.send("the cat sat on the mat, " * 3, strategy="verify", max_new_tokens=40, **ENDLESS))
    assert chat.decoder.has_dropped_rows
    chat.save(tmp_path / "chat.safetensors")
    again, fork = model.load_conversation(tmp_path / "chat.safetensors"), chat.fork()
    answers = [
        [token.id for token in one.send("and?", strategy="verify", max_new_tokens=12)] for one in (chat, again, fork)
    ]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("dropped", [-1, 10_000, STEP])
def test_a_saved_chat_with_other_rows_than_it_says_is_refused(dropped: int, model: Model, tmp_path: Path) -> None:
    chat = model.conversation()
    list(chat.send("the cat sat on the mat, " * 3, strategy="verify", max_new_tokens=40, **ENDLESS))
    chat.save(tmp_path / "chat.safetensors")
    arrays, about = tensor_file.read(tmp_path / "chat.safetensors")
    assert arrays["full.dropped"] != STEP
    tensor_file.write(tmp_path / "bad.safetensors", {**arrays, "full.dropped": np.array([dropped])}, about)
    with pytest.raises(InputError, match="full\\."):
        model.load_conversation(tmp_path / "bad.safetensors")


def test_prompt_files_have_all_rows_or_none(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    files = PromptFiles(model, 1e9)
    decoder, saved, later = (model.decoder("verify") for _ in range(3))
    outcome(decoder, IDS)
    assert files.unsaved(decoder) is None
    saved.keep_all_rows()
    outcome(saved, IDS)
    while (unsaved := files.unsaved(saved)) is not None:
        assert files.write(unsaved)
    later.recall = files.restore
    assert close(outcome(later, IDS), whole(model, IDS))
    assert later.work.reused > LENGTH // 2
    other = [*IDS[:70], *OTHERS[:40]]
    assert close(outcome(later, other), whole(model, other))


def test_texts_that_a_server_keeps_are_cropped_or_read_again(model: Model) -> None:
    caches = PrefixCaches(model, 2)
    for ids in (IDS, [*IDS[:-20], *OTHERS[:20]], [*IDS[:80], *OTHERS[:60]], OTHERS[:60], OTHERS, IDS):
        with caches.lend(ids, "verify") as decoder:
            assert close(outcome(decoder, ids), whole(model, ids))


def test_two_texts_that_begin_alike_and_fork_too_early_do_not_take_each_others_rows(model: Model) -> None:
    caches, texts = PrefixCaches(model, 2), (IDS, [*IDS[:100], *OTHERS[:50]])
    reused = []
    for ids in (*texts, *texts, *texts):
        with caches.lend(ids, "verify") as decoder:
            assert close(outcome(decoder, ids), whole(model, ids))
            reused.append(decoder.work.reused)
    assert reused[:2] == [0, 0]
    assert min(reused[2:]) >= LENGTH - 14


def test_texts_that_a_server_saves_keep_all_rows(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path))
    saver = PromptSaver(PromptFiles(model, 1e9), 1)
    with PrefixCaches(model, 2, saver).lend(IDS, "verify") as decoder:
        outcome(decoder, IDS)
        assert not decoder.has_dropped_rows
    saver.close(PATIENCE)
    assert list(tmp_path.rglob("*.safetensors"))


def test_the_context_can_be_filled(model: Model) -> None:
    ids = np.random.default_rng(7).integers(1, 300, CONTEXT).tolist()
    assert close(outcome(model.decoder("verify"), ids), whole(model, ids))
