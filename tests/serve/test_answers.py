"""What the openai client gets is what the runtime makes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

import recycle_onnx
from recycle_onnx.runtime.model import Model
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.service import MANY_TOKENS
from tests.helpers.endless import write_endless_bundle
from tests.serve.conftest import NAME, serving

PROMPT = "the cat sat on"
MESSAGES: Any = [{"role": "system", "content": "be a cat"}, {"role": "user", "content": "the dog ran"}]
RENDERED = "<|endoftext|>system: be a cat\nuser: the dog ran\nassistant:"
ODD = "the 🦊 né 你好"


def test_the_model_is_listed(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == NAME
    assert card.model_extra is not None
    assert card.model_extra["recycle"]["strategies"] == ["auto", "full", "alternate", "verify", "lookup"]
    assert card.model_extra["recycle"]["chat"] is True
    assert client.models.retrieve(NAME).id == NAME


@pytest.mark.parametrize("strategy", ["full", "verify", "alternate", "lookup"])
@pytest.mark.parametrize("prompt", [PROMPT, ODD])
def test_a_completion_is_what_generate_gives(strategy: str, prompt: str, client: OpenAI, endless_model: Model) -> None:
    expected = endless_model.generate(prompt, max_new_tokens=24, strategy=strategy)
    answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=24, extra_body={"strategy": strategy})
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == len(endless_model.encode(prompt))
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert usage.model_extra is not None
    recycle = usage.model_extra["recycle"]
    assert recycle["recycled_tokens"] == sum(expected.recycled)
    assert recycle["accepted"] == expected.stats.accepted
    assert recycle["proposed"] == expected.stats.proposed
    assert (recycle["strategy"], recycle["lossless"]) == (strategy, expected.lossless)


def test_token_ids_are_a_prompt_too(client: OpenAI, endless_model: Model) -> None:
    ids = endless_model.encode(PROMPT)
    for prompt in (ids, [PROMPT]):
        answer = client.completions.create(model=NAME, prompt=prompt)
        assert answer.choices[0].text == endless_model.generate(ids, max_new_tokens=512).text


def test_a_chat_goes_through_the_template(client: OpenAI, endless_model: Model) -> None:
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    expected = endless_model.generate(ids, max_new_tokens=20)
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_completion_tokens=20)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    parts: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "a cat"}]}
    ]
    again = client.chat.completions.create(model=NAME, messages=[*parts, MESSAGES[1]], max_tokens=20)
    assert again.choices[0].message.content == expected.text


@pytest.mark.parametrize("prompt", [PROMPT, ODD])
def test_a_streamed_chat_adds_up(prompt: str, client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": prompt}]
    asked: Any = {"model": NAME, "messages": messages, "max_tokens": 40, "temperature": 1.5, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    usage, marks = chunks[-1].usage, [chunk.model_extra["recycle"] for chunk in chunks if chunk.model_extra]
    assert usage is not None
    assert usage.model_extra is not None
    marks = [mark for mark in marks if mark]
    assert usage.completion_tokens == len(marks) == 40
    assert sum(mark["recycled"] for mark in marks) == usage.model_extra["recycle"]["recycled_tokens"]
    assert all(after["proposed"] >= before["proposed"] for before, after in pairwise(marks))
    without = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_a_streamed_completion_adds_up(client: OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 30}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30


def test_a_stop_string_ends_the_text_and_is_not_in_it(client: OpenAI, endless_model: Model) -> None:
    text = endless_model.generate(PROMPT, max_new_tokens=60).text
    stop = text[20:23]
    asked: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 60}
    for stops in (stop, ["never there", stop]):
        answer = client.completions.create(**asked, stop=stops)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].text == text[: text.find(stop)]
    chunks = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.find(stop)]


def test_a_seed_repeats_a_text_under_every_lossless_strategy(client: OpenAI) -> None:
    def text(seed: int | None, strategy: str = "full") -> str:
        answer = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=30, temperature=1, seed=seed, extra_body={"strategy": strategy}
        )
        return answer.choices[0].text

    assert text(5) == text(5) == text(5, "verify") == text(5, "auto") == text(5, "lookup")
    assert text(6) != text(5)
    assert text(None) != text(None)


def test_without_a_seed_the_one_that_was_drawn_is_told(client: OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 30, "temperature": 1}
    first = client.completions.create(**asked)
    assert first.usage is not None
    assert first.usage.model_extra is not None
    again = client.completions.create(**asked, seed=first.usage.model_extra["recycle"]["seed"])
    assert again.choices[0].text == first.choices[0].text


def test_penalties_and_biases_are_passed_on(client: OpenAI, endless_model: Model) -> None:
    settings: Any = {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 1.5, "frequency_penalty": -0.5, "seed": 2}
    ours: Any = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}
    expected = endless_model.generate(PROMPT, max_new_tokens=30, logit_bias={70: 3.5}, **settings, **ours)
    plain = endless_model.generate(PROMPT, max_new_tokens=30, temperature=0.7, seed=2)
    answer = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=30, logit_bias={"70": 3.5}, **settings, extra_body=ours
    )
    assert answer.choices[0].text == expected.text != plain.text


def test_log_probabilities_of_a_chat(client: OpenAI, endless_model: Model) -> None:
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    expected = list(endless_model.stream(ids, max_new_tokens=12, logprobs=3))
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert [entry.logprob for entry in whole.content] == pytest.approx([token.logprob for token in expected], abs=1e-5)
    for entry, token in zip(whole.content, expected, strict=True):
        top = [other.logprob for other in entry.top_logprobs]
        assert top == pytest.approx([value for _, value in token.top_logprobs], abs=1e-5)
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
    chunks = client.chat.completions.create(**asked, stream=True)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content or ()]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in whole.content], abs=1e-5)


def test_log_probabilities_of_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 12
    for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(logprob)
    assert client.completions.create(model=NAME, prompt=PROMPT).choices[0].logprobs is None


def test_the_next_turn_reads_only_what_is_new(client: OpenAI, endless_model: Model) -> None:
    turns: Any = [{"role": "user", "content": "the dog sat on the log, " * 20}]
    asked: Any = {"model": NAME, "max_tokens": 10}
    first = client.chat.completions.create(**asked, messages=turns)
    turns += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and then"},
    ]
    second = client.chat.completions.create(**asked, messages=turns)
    for answer in (first, second):
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1  # type: ignore[union-attr]
    text = endless_model.tokenizer
    rendered = "<|endoftext|>" + "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns) + "assistant:"
    fresh = endless_model.generate(text.encode(rendered, add_special_tokens=False).ids, max_new_tokens=10)
    assert second.choices[0].message.content == fresh.text


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    turns: Any = [{"role": "user", "content": "the cat"}]
    turns.append(client.chat.completions.create(model=NAME, max_tokens=5, messages=turns).choices[0].message)
    turns.append({"role": "user", "content": "and then"})
    assert client.chat.completions.create(model=NAME, max_tokens=5, messages=turns).choices[0].message.content


def test_fields_that_ask_for_nothing_are_no_mistake(client: OpenAI) -> None:
    turns: Any = [{"role": "assistant", "content": "a", "tool_calls": None, "audio": None, "annotations": []}]
    nothing: Any = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "service_tier": "auto"}
    assert client.chat.completions.create(model=NAME, max_tokens=2, messages=turns, **nothing, modalities=["text"])
    assert client.completions.create(model=NAME, prompt="a", max_tokens=2, echo=False, best_of=1, suffix=None)


def test_a_nucleus_of_nothing_is_greedy(client: OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": PROMPT, "max_tokens": 12}
    hot = {"temperature": 1.0, "seed": 3}
    texts = [
        client.completions.create(**asked, **controls).choices[0].text
        for controls in ({"temperature": 0.0}, {**hot, "top_p": 0.0}, hot)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_best_cache_of_those_that_may_be_taken(endless_model: Model) -> None:
    caches, short, long = PrefixCaches(endless_model, 2), list(range(1, 61)), list(range(1, 81)) + [3] * 200
    for text in (long, short):
        with caches.lend(text, "full") as decoder:
            decoder.prefill(text)
    with caches.lend(long[:80], "full") as decoder:  # the long text shares more, and is too long to be given up
        decoder.prefill(long[:80])
        assert decoder.work.reused == 60


def test_a_short_text_does_not_take_a_long_one_from_its_cache(endless_model: Model) -> None:
    with serving(endless_model, Limits(caches=2)) as running:

        def cached(prompt: str) -> int:
            usage = running.client().completions.create(model=NAME, prompt=prompt, max_tokens=16).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            return usage.prompt_tokens_details.cached_tokens or 0

        long = "the cat sat on the mat, " * 30
        assert cached(long) == 0
        assert cached("the cat sat on a log") == 0
        assert cached(long + "and") > 100
        assert cached("a hen") == cached("the dog") == 0
        assert cached(long + "and") == 0  # two others came since


def test_without_caches_every_text_is_read_anew(endless_model: Model) -> None:
    with serving(endless_model, Limits(caches=0)) as running:
        for _ in range(2):
            usage = running.client().completions.create(model=NAME, prompt="the cat sat " * 30).usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            assert usage.prompt_tokens_details.cached_tokens == 0


def test_an_answer_follows_a_schema(sample_model: Model) -> None:
    schema = {"type": "object", "properties": {"animal": {"enum": ["cat", "fox"]}, "legs": {"enum": [2, 4]}}}
    schema |= {"required": ["animal", "legs"], "additionalProperties": False}
    of_schema: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    with serving(sample_model) as running:
        create = running.client().chat.completions.create
        texts = set()
        for strategy in ("full", "verify"):
            answer = create(
                model=NAME, messages=MESSAGES, seed=3, temperature=1, response_format=of_schema,
                extra_body={"strategy": strategy},
            )  # fmt: skip
            assert answer.choices[0].finish_reason == "stop"
            texts.add(answer.choices[0].message.content)
        (text,) = texts
        found = json.loads(text or "")
        assert found["animal"] in ("cat", "fox")
        assert found["legs"] in (2, 4)
        text = create(
            model=NAME, messages=MESSAGES, max_tokens=9, response_format={"type": "json_object"}
        ).choices[0].message.content or ""  # fmt: skip
        assert text.startswith("{")
        with pytest.raises(BadRequestError, match="not one to follow"):
            create(
                model=NAME, messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 3}}},
            )  # fmt: skip


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 8}], ids=["no limit", "a limit"])
def test_the_bundles_least_length_is_no_more_than_the_limit(
    fields: dict[str, Any], endless_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """generation_config.json may say `min_new_tokens: 32`, and a request may ask for less."""
    monkeypatch.setattr(endless_model, "generation_config", endless_model.generation_config.updated(min_new_tokens=32))
    with serving(endless_model) as running:
        answer = running.client().completions.create(model=NAME, prompt="the cat", **fields)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == fields.get("max_tokens", 512)


def test_a_long_answer_has_all_its_tokens(client: OpenAI) -> None:
    """It is written down in another thread: the event loop would wait for it."""
    answer = client.completions.create(model=NAME, prompt="the cat", max_tokens=MANY_TOKENS + 50, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == MANY_TOKENS + 50


def test_an_answer_goes_on_to_the_contexts_end_where_it_is_asked_to(tmp_path: Path) -> None:
    bundle = write_endless_bundle(tmp_path, context_length=600)
    with serving(recycle_onnx.load(bundle, threads=1)) as running:
        create = running.client().completions.create
        lengths = {most: create(model=NAME, prompt=[0, 5], max_tokens=most).usage for most in (None, 40, -1)}
        with pytest.raises(BadRequestError, match="max_tokens is 0; expected"):
            create(model=NAME, prompt=[0, 5], max_tokens=0)
    assert [usage and usage.completion_tokens for usage in lengths.values()] == [512, 40, 598]
