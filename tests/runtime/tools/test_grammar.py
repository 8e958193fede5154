"""Answers with calls: under `required` every one parses and satisfies its schema, in every strategy."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.generation import Result
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.structured import Constraints, JsonSchema
from recycle_onnx.runtime.tools.formats import FORMATS
from recycle_onnx.runtime.tools.formats.generic import GENERIC
from recycle_onnx.runtime.tools.formats.tagged import TAGGED
from recycle_onnx.runtime.tools.grammar import MOST_CALLS, GrammarWriter
from recycle_onnx.runtime.tools.schema import enforced
from recycle_onnx.runtime.tools.tool import Mode, Tool, ToolSet
from recycle_onnx.runtime.tools.tool_chat import ToolChat, ToolUse
from tests.helpers import tiny
from tests.helpers.campaigns import LONG
from tests.helpers.tools import MARKERS, TIME, TOOL_TEMPLATES, TOOLS, WEATHER, random_tools, write_talker

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

CALLS = 100 if LONG else 8
"""For each strategy and format: in the long form, 500 for each strategy in five formats."""
PLANS: list[dict[str, Any]] = [
    {"strategy": "full"},
    *({"strategy": "verify", "chain": chain} for chain in (1, 3)),
    {"strategy": "lookup"},
    {"strategy": "auto"},
    {"strategy": "alternate"},
]
LOSSLESS = [plan for plan in PLANS if plan["strategy"] != "alternate"]
NO_THOUGHT = {"enable_thinking": False}
"""A random model that begins to think may never end."""
ASKED = [{"role": "user", "content": "the cat"}]
LIVELY: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": -1}


class Talker:
    """A random model with a chat template, and its way with tools."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.chat = ToolChat(ChatTemplate.for_tools(model.bundle.folder), model.tokenizer)

    def answer(self, tools: ToolSet, **settings: Any) -> tuple[ToolUse, Result]:
        use = self.chat.use(tools, variables=NO_THOUGHT)
        prompt = self.chat.render(ASKED, variables=NO_THOUGHT)  # tools would be thousands of this model's tokens
        ids = self.model.tokenizer.encode(prompt, add_special_tokens=False).ids
        return use, self.model.generate(ids, constraint=use.grammar, **settings)


@pytest.fixture(scope="module", params=["generic", *TOOL_TEMPLATES])
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talker]:
    plain = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    bundle = write_talker(tmp_path_factory.mktemp("talker"), request.param, plain, seed=5)
    with recycle_onnx.load(bundle, threads=1) as model:
        yield Talker(model)


def calls_of(use: ToolUse, text: str) -> list[tuple[str, str]]:
    reader = use.reader()
    reader.push(text)
    reader.end()
    assert reader.text == ""
    assert reader.finish_reason("stop") == "tool_calls"
    return [(call.name, call.arguments) for call in reader.calls]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_call_parses_and_satisfies_its_schema(talker: Talker, plan: dict[str, Any]) -> None:
    dice = random.Random(str(plan))
    count = 0
    while count < CALLS:
        tools = random_tools(dice, 3)
        use, result = talker.answer(tools, temperature=1.0, seed=dice.randrange(1 << 30), max_new_tokens=-1, **plan)
        assert result.finish_reason == "stop"
        schemas = {tool.name: tool.parameters for tool in tools.tools}
        calls = calls_of(use, result.text)
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas[name])
        assert len(calls) <= MOST_CALLS
        count += len(calls)


@pytest.mark.parametrize("mode", ["auto", "required", "none"])
def test_every_strategy_gives_the_text_of_full(talker: Talker, mode: Mode) -> None:
    for seed in range(2):
        tools = ToolSet(TOOLS, mode)
        settings = {"temperature": float(seed > 0), "seed": seed, "max_new_tokens": 80}
        texts = [talker.answer(tools, **settings, **plan)[1] for plan in LOSSLESS]
        assert {(result.text, tuple(result.tokens), result.finish_reason) for result in texts} == {
            (texts[0].text, tuple(texts[0].tokens), texts[0].finish_reason)
        }


@pytest.mark.parametrize("strategy", ["verify", "lookup", "auto"])
def test_what_the_grammar_spells_out_takes_no_runs_of_its_own(talker: Talker, strategy: str) -> None:
    tools = ToolSet((TIME,), "required", parallel=False)
    use, result = talker.answer(tools, strategy=strategy)
    assert calls_of(use, result.text) == [("get_time", "{}")]
    assert len(result.tokens) > 10
    most = 1.0 if strategy == "auto" else 0.5  # auto times its runs, and a busy moment may tell it to propose less
    assert result.stats.full_runs < most * len(result.tokens)


def test_one_tool_is_called_once_where_it_is_named(talker: Talker) -> None:
    tools = ToolSet.of(TOOLS, "get_time")
    for seed in range(5):
        use, result = talker.answer(tools, temperature=1.5, seed=seed)
        assert [name for name, _ in calls_of(use, result.text)] == ["get_time"]


def test_only_allowed_tools_are_called(talker: Talker) -> None:
    for seed in range(5):
        use, result = talker.answer(ToolSet(TOOLS, "required", ("get_weather",)), seed=seed, **LIVELY)
        assert {name for name, _ in calls_of(use, result.text)} == {"get_weather"}


def test_a_call_that_begins_becomes_one(talker: Talker) -> None:
    """Under `auto` a model may say what it likes; once it has begun a call, the grammar takes over."""
    use = talker.chat.use(ToolSet(TOOLS, "auto", parallel=False), variables=NO_THOUGHT)
    form, model = talker.chat.form, talker.model
    begun = model.tokenizer.encode(form.trigger, add_special_tokens=False).ids
    settings: dict[str, Any] = {"temperature": 1.5, "seed": 1, "max_new_tokens": 400}
    words = model.generate("the cat", constraint=use.grammar, **settings)
    assert not words.text.startswith(form.trigger)

    def push(ids: Any, logits: Any) -> Any:
        new = len(ids) - 9
        if 0 <= new < len(begun):
            logits[begun[new]] += 1e6
        return logits

    prompt = list(range(1, 10))
    for plan in PLANS:
        result = model.generate(prompt, constraint=use.grammar, processors=[push], **settings, **plan)
        assert result.text.startswith(form.trigger)
        (call,) = calls_of(use, result.text)
        schema = {tool.name: tool.parameters for tool in TOOLS}[call[0]]
        jsonschema.validate(json.loads(call[1]), schema)


@lru_cache(maxsize=1)
def constraints(tokenizer: Any) -> Constraints:
    return Constraints(tokenizer, tokenizer.get_vocab_size())


def allowed(source: Any, pieces: list[str], tokenizer: Any) -> bool:
    """Tell whether a text of these pieces, special tokens among them, is a whole one of a grammar."""
    follower = constraints(tokenizer).prepare(source, frozenset([0])).start(np.array([]))
    ids = [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False).ids]
    if follower.fitting(ids) < len(ids):
        return False
    for token in ids:
        follower.advance(token)
    logits = follower(np.array(ids), np.zeros(tokenizer.get_vocab_size(), np.float32))
    return bool(np.isfinite(logits[0]))


ONE = ("get_weather", {"city": "Rom"})
TWO = ("get_time", {})
THOUGHT = "<think>\nhm\n</think>\n\n"


@pytest.mark.parametrize("marked", [False, True], ids=["ordinary", "special"])
@pytest.mark.parametrize("form", [*FORMATS, GENERIC], ids=lambda form: form.before_name + form.name)
def test_what_an_answer_may_be(form: Any, marked: bool) -> None:
    tokenizer = tiny.tokenizer()
    if marked:
        tags = ["<tool_call>", "</tool_call>", "<think>", "</think>", "</parameter>", "<arg_key>", "</arg_value>"]
        tokenizer.add_special_tokens([*MARKERS, *tags])
    one, two = form.written([ONE]), form.written([ONE, TWO])
    wrong = form.written([("get_weather", {"town": "Rom"})])
    inside = THOUGHT.replace("hm", one)
    writer = GrammarWriter(form, tokenizer)
    for thinks in (False, True):
        for mode, several, expected in [
            ("required", True, {one, two}),
            ("required", False, {one}),
            ("auto", True, {"Hm.", one, two}),
            ("auto", False, {"Hm.", one}),
            ("none", True, {"Hm."}),
        ]:
            grammar = writer.write(ToolSet(TOOLS, mode, parallel=several), None, "possible" if thinks else "none")
            for text in ("Hm.", one, two, wrong, one + "Hm."):
                assert allowed(grammar, [text], tokenizer) == (text in expected), (mode, text)
                if thinks and not marked:  # in a thought special tokens are no words
                    assert allowed(grammar, [inside + text], tokenizer) == (text in expected), (mode, text)
                if thinks:
                    assert allowed(grammar, [THOUGHT + text], tokenizer) == (text in expected), (mode, text)
            if not form.beginning:
                assert allowed(grammar, ["Hm. " + one], tokenizer) == (mode == "auto")


def test_an_answer_is_of_the_schema_or_a_call(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    schema = JsonSchema({"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False})
    writer = GrammarWriter(TAGGED, tokenizer)
    grammar = writer.write(ToolSet(TOOLS), schema)
    assert allowed(grammar, ['{"a": true}'], tokenizer)
    assert allowed(grammar, [TAGGED.written([ONE])], tokenizer)
    assert not allowed(grammar, ["Hm."], tokenizer)
    chat = ToolChat(ChatTemplate.find(tmp_path, "plain"), tokenizer)
    with pytest.raises(InputError, match="a response format and tools at once"):
        chat.use(ToolSet(TOOLS), schema)
    chat.use(ToolSet(TOOLS, "required"), schema)


def test_an_object_has_no_more_properties_than_it_lists() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "string"}}}
    schema = enforced(Tool("f", parameters={"type": "object", "title": "T", "properties": {"a": inner, "title": {}}}))
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {"a": {**inner, "additionalProperties": False}, "title": {}}
    assert "title" not in schema


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}},
    ],
)
def test_an_object_that_may_have_others_may(parameters: dict[str, Any]) -> None:
    made = enforced(Tool("f", parameters=parameters))
    made.pop("x-guidance")
    assert made == {**parameters, "type": "object"}


def test_what_cannot_be_enforced_is_left_out_unless_a_tool_is_strict() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "maxItems": 1}}}
    tokenizer = tiny.tokenizer()
    constraints = Constraints(tokenizer, tokenizer.get_vocab_size())
    for strict in (False, True):
        tools = ToolSet((Tool("f", parameters=parameters, strict=strict),))
        grammar = GrammarWriter(GENERIC, tokenizer).write(tools)
        if strict:
            with pytest.raises(InputError, match=r"the tools' schemas .*uniqueItems"):
                constraints.prepare(grammar, frozenset([0]))
        else:
            constraints.prepare(grammar, frozenset([0]))


def test_a_prompt_that_ends_within_a_thought_is_seen(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if think %}<think>\n{% else %}</think>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    chat = ToolChat(ChatTemplate.for_tools(tmp_path), tiny.tokenizer())
    call = GENERIC.written([TWO])
    for think in (True, False):
        use = chat.use(ToolSet((WEATHER, TIME), "required"), variables={"think": think})
        assert allowed(use.grammar, ["hm</think>\n" + call], tiny.tokenizer()) is think
        reader = use.reader()
        reader.push("hm</think>\n" + call if think else call)
        assert len(reader.calls) == 1
