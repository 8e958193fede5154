"""What a model thinks before it answers is told apart from the answer, where the API has a place for it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.tools.thoughts import FIELD, with_thoughts
from recycle_onnx.runtime.tools.tool import ToolSet
from recycle_onnx.runtime.tools.tool_chat import NO_TOOLS, ToolChat
from recycle_onnx.serve.blocks import Block, BlockReader
from tests.helpers import tiny
from tests.helpers.tools import TAGGED_TEMPLATE, TOOLS, write_talker
from tests.runtime.tools.test_reader import cut
from tests.serve.conftest import Running, serving
from tests.serve.test_anthropic import events
from tests.serve.test_ollama import ask, lines
from tests.serve.test_refusals import post

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
BEGUN = TURNS + "<think>\n{% if enable_thinking is defined and not enable_thinking %}</think>\n\n{% endif %}"
POSSIBLE = TURNS + "{# </think> #}"
USER: Any = [{"role": "user", "content": "the cat"}]
THOUGHT, WORDS = "Hmm: <tool_call>?\n\n It is one.", "The cat\n sat.\n"
CALL = '\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def reader(template: str, tools: ToolSet = NO_TOOLS, thoughts: bool = True) -> BlockReader:
    known = ChatTemplate("default", lambda messages, **_: template, text=template + TAGGED_TEMPLATE)
    return BlockReader(ToolChat(known, tiny.tokenizer()).use(tools), thoughts=thoughts)


def read(own: BlockReader, pieces: list[str]) -> list[Block]:
    """Read an answer; look whether what was told of each block is the block."""
    changes = [change for piece in pieces for change in own.push(piece)]
    changes += own.end()
    for block in own.blocks:
        mine = [change for change in changes if change.block.index == block.index]
        assert [mine[0].kind, mine[-1].kind] == ["opened", "closed"]
        assert "".join(change.text for change in mine) == block.text
        assert mine[-1].block == block
    return own.blocks


@pytest.mark.parametrize("template", [POSSIBLE, "<think>\n"], ids=["possible", "begun"])
@pytest.mark.parametrize(
    ("thought", "words", "call"),
    [(THOUGHT, WORDS, ""), (THOUGHT, "", ""), ("", WORDS, ""), (THOUGHT, "", CALL), ("a", "b", CALL)],
)
def test_a_thought_is_a_block_however_it_comes(template: str, thought: str, words: str, call: str) -> None:
    begin = "" if template == "<think>\n" else "\n<think>"
    text = f"{begin}\n{thought}\n</think>\n\n{words}{call}"
    dice = random.Random(2)
    for pieces in (*([text[n : n + size] for n in range(0, len(text), size)] for size in (1, 2, 99999)),
                   *(cut(text, dice) for _ in range(50))):  # fmt: skip
        made = read(reader(template, ToolSet(TOOLS) if call else NO_TOOLS), pieces)
        assert "".join(block.text for block in made if block.is_thought) == thought
        assert "".join(block.text for block in made if block.is_words) == words
        assert [block.call.name for block in made if block.call] == ["get_time"] * bool(call)
        kinds = [block.is_thought for block in made]
        assert kinds == sorted(kinds, reverse=True)
        assert len(made) == max(1, bool(thought) + bool(words) + bool(call))


def test_a_thought_that_is_cut_short_is_the_whole_answer() -> None:
    (block,) = read(reader("<think>\n"), ["Hmm, ", "well </thi"])
    assert (block.is_thought, block.text) == (True, "Hmm, well </thi")


def test_who_does_not_tell_them_apart_has_the_text_as_it_is() -> None:
    text = f"<think>\n{THOUGHT}\n</think>\n\n{WORDS}"
    (block,) = read(reader(POSSIBLE, thoughts=False), list(text))
    assert (block.is_words, block.text) == (True, text)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (f"{{{{ m.{FIELD} }}}}</think>", {"role": "assistant", "content": "b", FIELD: "a"}),
        (POSSIBLE, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}),
        (TURNS, {"role": "assistant", "content": "b"}),
    ],
    ids=["a field", "in the text", "nowhere"],
)
def test_earlier_thoughts_are_where_the_template_expects_them(template: str, expected: dict[str, str]) -> None:
    message = {"role": "assistant", "content": "b", FIELD: "a"}
    assert with_thoughts([*USER, message], template) == [*USER, expected]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model whose answers begin within a thought, and do not find out of it."""
    with recycle_onnx.load(write_talker(tmp_path_factory.mktemp("thinker"), "none", BEGUN, seed=7), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def running(thinker: Model) -> Iterator[Running]:
    with serving(thinker) as server:
        yield server


def expected(model: Model, text: str) -> str:
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
    return model.generate(ids, max_new_tokens=20).text


PROMPT = "user: the cat\nassistant: <think>\n"


def test_anthropics_thoughts_are_blocks(running: Running, thinker: Model) -> None:
    asked: Any = {"messages": USER, "max_tokens": 20}
    status, answer = post(running, "/v1/messages", json.dumps(asked).encode())
    assert status == 200, answer
    thought = expected(thinker, PROMPT).strip()
    assert answer["content"] == [{"type": "thinking", "thinking": thought, "signature": ""}]
    made = events(running, **asked, thinking={"type": "enabled", "budget_tokens": 1024})
    assert made[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    deltas = [event["delta"] for event in made if event["type"] == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"thinking_delta"}
    assert "".join(delta["thinking"] for delta in deltas) == thought
    again = [*USER, {"role": "assistant", "content": [*answer["content"], {"type": "text", "text": "b"}]}, *USER]
    assert post(running, "/v1/messages", json.dumps({**asked, "messages": again}).encode())[0] == 200
    silent = {**asked, "thinking": {"type": "disabled"}}
    (block,) = post(running, "/v1/messages", json.dumps(silent).encode())[1]["content"]
    assert block == {"type": "text", "text": expected(thinker, f"{PROMPT}</think>\n\n")}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_ollamas_thoughts_have_a_field(path: str, running: Running, thinker: Model) -> None:
    asked: Any = {
        "options": {"num_predict": 20},
        **({"messages": USER} if path == "/api/chat" else {"prompt": "the cat"}),
    }

    def parts(answer: dict[str, Any]) -> tuple[str, str]:
        made = answer.get("message", answer)
        return made.get("thinking", ""), made.get("content", made.get("response"))

    thought = expected(thinker, PROMPT).strip()
    for think in ({}, {"think": True}):
        assert parts(ask(running, path, **asked, **think)) == (thought, "")
    streamed = [parts(line) for line in lines(running, path, **asked)]
    assert ["".join(one) for one in zip(*streamed, strict=True)] == [thought, ""]
    silent = expected(thinker, f"{PROMPT}</think>\n\n")
    assert parts(ask(running, path, **asked, think=False)) == ("", silent)


def test_a_model_that_thinks_is_shown_as_such(running: Running) -> None:
    assert "thinking" in ask(running, "/api/show", stream=None)["capabilities"]


def test_thoughts_go_back_to_the_template(running: Running) -> None:
    answer = {"role": "assistant", "content": "b", "thinking": "a long thought"}
    asked: Any = {"options": {"num_predict": 1}, "think": False}
    counts = [
        ask(running, "/api/chat", messages=[*USER, turn, *USER], **asked)["prompt_eval_count"]
        for turn in (answer, {"role": "assistant", "content": "b"})
    ]
    assert counts[0] > counts[1]


def test_openais_apis_have_them_in_the_text(running: Running, thinker: Model) -> None:
    client, text = running.client(), expected(thinker, PROMPT)
    assert client.chat.completions.create(model="any", messages=USER, max_tokens=20).choices[0].message.content == text
    assert client.responses.create(model="any", input="the cat", max_output_tokens=20).output_text == text
