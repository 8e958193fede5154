"""One decoder, several generations: the caches are those of one text at a time, and of one model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import recycle_onnx
from recycle_onnx.errors import InputError, OvertakenError
from recycle_onnx.runtime.model import Model

FIRST, SECOND = "One day, a cat", "Once upon a time"


@pytest.mark.parametrize("strategy", ["full", "alternate", "verify", "lookup", "auto"])
def test_a_generation_whose_caches_read_another_text_is_refused(sample_model: Model, strategy: str) -> None:
    decoder = sample_model.decoder("auto")
    older = sample_model.stream(FIRST, decoder=decoder, strategy=strategy, max_new_tokens=20)
    next(older)
    newer = sample_model.stream(SECOND, decoder=decoder, strategy=strategy, max_new_tokens=20)
    tokens = [token.id for token in newer]
    with pytest.raises(OvertakenError, match="have read another text"):
        list(older)
    assert len(older.result.tokens) == 1
    assert tokens == sample_model.generate(SECOND, strategy=strategy, max_new_tokens=20).tokens


def test_generations_by_turns_on_one_decoder_end_with_the_newest(sample_model: Model) -> None:
    decoder = sample_model.decoder("auto")
    older, newer = (sample_model.stream(text, decoder=decoder, max_new_tokens=8) for text in (FIRST, SECOND))
    next(older)
    next(newer)
    with pytest.raises(OvertakenError):
        next(older)
    assert [token.id for token in [*newer.tokens, *newer]] == sample_model.generate(SECOND, max_new_tokens=8).tokens


def test_asyncio_is_told_the_same(sample_model: Model) -> None:
    decoder = sample_model.decoder("auto")
    older = sample_model.stream(FIRST, decoder=decoder, max_new_tokens=8)

    async def go_on() -> None:
        async for _ in older:
            list(sample_model.stream(SECOND, decoder=decoder, max_new_tokens=2))

    with pytest.raises(OvertakenError):
        asyncio.run(go_on())


def test_a_text_that_was_restored_or_read_by_hand_takes_over_too(sample_model: Model) -> None:
    for take_over in (lambda d: d.restore(d.snapshot()), lambda d: d.prefill(sample_model.encode(SECOND))):
        decoder = sample_model.decoder("auto")
        older = sample_model.stream(FIRST, decoder=decoder, max_new_tokens=8)
        next(older)
        take_over(decoder)
        with pytest.raises(OvertakenError):
            next(older)


def test_a_fork_does_not_disturb_an_answer_in_progress(sample_model: Model) -> None:
    chat = sample_model.conversation()
    answer = chat.send(FIRST, max_new_tokens=8)
    next(answer)
    list(chat.fork().send(SECOND, max_new_tokens=4))
    assert [token.id for token in [*answer.tokens, *answer]] == sample_model.generate(
        answer.prompt, max_new_tokens=8
    ).tokens


@pytest.mark.parametrize("strategy", ["verify", "alternate"])
def test_caches_without_a_module_are_refused_where_it_is_needed(sample_model: Model, strategy: str) -> None:
    with pytest.raises(InputError, match=f"'{strategy}' needs the module's caches.*decoder\\('{strategy}'\\)"):
        sample_model.stream(FIRST, strategy=strategy, decoder=sample_model.decoder("full"))


def test_auto_does_without_a_module_that_the_caches_lack(sample_model: Model) -> None:
    generation = sample_model.stream(FIRST, strategy="auto", decoder=sample_model.decoder("full"), max_new_tokens=8)
    assert [token.id for token in generation] == sample_model.generate(FIRST, max_new_tokens=8).tokens


def test_caches_of_another_model_are_refused(sample_model: Model, sample_bundle: Path) -> None:
    with (
        recycle_onnx.load(sample_bundle) as other,
        pytest.raises(InputError, match="the decoder is another model's"),
    ):
        sample_model.stream(FIRST, decoder=other.decoder("auto"))
