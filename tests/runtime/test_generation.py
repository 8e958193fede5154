"""Stopping, streaming and the statistics of a generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.model import Model

PROMPT = "Once upon a time, there was a little dog"
STRATEGIES = ("full", "alternate", "verify")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_streamed_tokens_are_those_of_the_result(sample_model: Model, strategy: str) -> None:
    generation = sample_model.stream(PROMPT, strategy=strategy, max_new_tokens=33)
    tokens = list(generation)
    result = sample_model.generate(PROMPT, strategy=strategy, max_new_tokens=33)
    assert [token.id for token in tokens] == generation.result.tokens == result.tokens
    assert [token.recycled for token in tokens] == result.recycled
    assert "".join(token.text for token in tokens) == result.text


def test_the_text_is_that_of_the_tokens(sample_model: Model) -> None:
    result = sample_model.generate(PROMPT, max_new_tokens=40)
    ids = sample_model.encode(PROMPT) + result.tokens
    assert PROMPT + result.text == sample_model.tokenizer.decode(ids)


def test_a_token_that_ends_texts_ends_this_one_and_has_no_text(sample_model: Model) -> None:
    result = sample_model.generate("Once upon a time")
    assert result.finish_reason == "stop"
    assert result.tokens[-1] in sample_model.stop_ids
    assert sample_model.tokenizer.decode(result.tokens[:-1]).strip() == result.text.strip()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stop_string_ends_the_text_before_it(sample_model: Model, strategy: str) -> None:
    whole = sample_model.generate(PROMPT, strategy=strategy, max_new_tokens=40).text
    stop = whole[20:29]
    result = sample_model.generate(PROMPT, strategy=strategy, max_new_tokens=40, stop=[stop])
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ("a\ud800", "half of one; expected valid Unicode"),
        (5, "the prompt is 5; expected a text, or token ids"),
        (None, "the prompt is None"),
        (["a"], r"the prompt is \['a'\]"),
        ([1, 2.7], r"the prompt is \[1, 2.7\]"),
        (b"abc", "the prompt is b'abc'"),
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_refused(sample_model: Model, prompt: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sample_model.generate(prompt)


def test_an_array_of_ids_is_a_prompt(sample_model: Model) -> None:
    ids = sample_model.encode(PROMPT)
    expected = sample_model.generate(ids, max_new_tokens=5).tokens
    for prompt in (np.array(ids), tuple(ids)):
        assert sample_model.generate(prompt, max_new_tokens=5).tokens == expected  # type: ignore[arg-type]


def test_statistics_fit_together(sample_model: Model) -> None:
    stats = sample_model.generate(PROMPT, strategy="verify", max_new_tokens=50).stats
    assert stats.prompt_tokens == len(sample_model.encode(PROMPT))
    assert stats.full_runs + stats.accepted == stats.new_tokens
    assert stats.acceptance_rate == stats.accepted / stats.proposed
    assert stats.time_to_first_token_s > 0
    assert stats.tokens_per_second > 0


@pytest.mark.parametrize(("strategy", "lossless"), [("full", "exact"), ("verify", "exact"), ("alternate", "no")])
def test_results_say_how_they_relate_to_full(sample_model: Model, strategy: str, lossless: str) -> None:
    assert sample_model.generate("A", strategy=strategy, max_new_tokens=2).lossless == lossless


def test_two_generations_of_one_model_do_not_disturb_each_other(sample_model: Model) -> None:
    prompts = (PROMPT, "The sun was hot and")
    expected = [sample_model.generate(prompt, max_new_tokens=20).tokens for prompt in prompts]
    streams = [sample_model.stream(prompt, max_new_tokens=20) for prompt in prompts]
    for pair in zip(*streams, strict=False):
        assert len(pair) == 2
    assert [stream.result.tokens[:19] for stream in streams] == [tokens[:19] for tokens in expected]
