"""Several answers to one request: `n` of them, or one to each of several prompts."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from recycle_onnx.runtime.model import Model
from tests.serve.conftest import NAME, Running

PROMPTS = ["the cat sat on", "a dog ran", "the hen"]
USER: Any = [{"role": "user", "content": "the cat"}]
HOT: Any = {"temperature": 1.5, "seed": 5, "max_tokens": 20}


def test_every_prompt_gets_its_own_answer(client: OpenAI, endless_model: Model) -> None:
    expected = [endless_model.generate(prompt, max_new_tokens=12).text for prompt in PROMPTS]
    ids = [endless_model.encode(prompt) for prompt in PROMPTS]
    for prompts in (PROMPTS, ids):
        answer = client.completions.create(model=NAME, prompt=prompts, max_tokens=12)  # type: ignore[arg-type]
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 36


def test_several_answers_have_seeds_in_a_row(client: OpenAI, endless_model: Model) -> None:
    expected = [
        endless_model.generate(PROMPTS[0], max_new_tokens=20, temperature=1.5, seed=seed).text for seed in (5, 6, 7)
    ]
    answer = client.completions.create(model=NAME, prompt=PROMPTS[0], n=3, **HOT)
    assert [choice.text for choice in answer.choices] == expected
    assert len(set(expected)) == 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(endless_model.encode(PROMPTS[0]))  # counted once
    assert answer.usage.completion_tokens == 60
    assert answer.usage.model_extra is not None
    assert answer.usage.model_extra["recycle"]["seed"] == 5
    assert answer.usage.model_extra["recycle"]["tokens_per_second"] > 0


def test_several_prompts_with_several_answers_each(client: OpenAI) -> None:
    one_by_one = [
        choice.text
        for prompt in PROMPTS[:2]
        for choice in client.completions.create(model=NAME, prompt=prompt, n=2, **HOT).choices
    ]
    answer = client.completions.create(model=NAME, prompt=PROMPTS[:2], n=2, **HOT)
    assert [choice.text for choice in answer.choices] == one_by_one
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_streamed_answers_add_up_by_their_numbers(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=USER, n=2, **HOT)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model=NAME, messages=USER, n=2, **HOT, **options))
    texts, reasons = ["", ""], ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == ["length", "length"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [40]
    assert [choice.index for choice in whole.choices] == [0, 1]


def test_one_request_takes_one_slot(server: Running, client: OpenAI) -> None:
    stream = client.completions.create(model=NAME, prompt=PROMPTS, n=4, max_tokens=2000, stream=True)
    next(stream)
    assert server.busy == 1
    stream.close()
