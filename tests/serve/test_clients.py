"""Clients of other servers, as they are: Ollama's and Anthropic's. (OpenAI's asks in most tests of this folder.)"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from recycle_onnx.runtime.model import Model
from tests.serve.conftest import NAME, Running, serving

REASON = "needs the client: pip install -e '.[clients]'"
SYSTEM, USER = {"role": "system", "content": "be a cat"}, {"role": "user", "content": "the dog ran"}
RENDERED = "<|endoftext|>system: be a cat\nuser: the dog ran\nassistant:"


@pytest.fixture(scope="module")
def text(endless_model: Model) -> str:
    ids = endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids
    return endless_model.generate(ids, max_new_tokens=20).text


class TestOllama:
    @pytest.fixture
    def client(self, server: Running) -> Any:
        return pytest.importorskip("ollama", reason=REASON).Client(host=server.url)

    def test_chat(self, client: Any, text: str) -> None:
        asked: Any = {"model": "llama3", "messages": [SYSTEM, USER], "options": {"num_predict": 20, "num_ctx": 4096}}
        answer = client.chat(**asked, keep_alive="5m")
        assert answer.message.content == text
        assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 20)
        parts = list(client.chat(**asked, stream=True))
        assert "".join(part.message.content for part in parts) == text
        assert [part.done for part in parts][-1] is True

    def test_a_message_of_an_answer_goes_back(self, client: Any) -> None:
        options = {"num_predict": 3}
        first = client.chat("llama3", messages=[USER], options=options)
        assert client.chat("llama3", messages=[USER, first.message, USER], options=options).message.content

    def test_generate(self, client: Any, text: str) -> None:
        asked: Any = {"system": "be a cat", "prompt": "the dog ran", "options": {"num_predict": 20}}
        assert client.generate("llama3", **asked).response == text
        assert "".join(part.response for part in client.generate("llama3", **asked, stream=True)) == text
        assert client.generate("llama3").done_reason == "load"

    def test_embed(self, client: Any, endless_model: Model) -> None:
        assert np.allclose(
            client.embed("any", ["the cat", "a dog"]).embeddings, endless_model.embed(["the cat", "a dog"])
        )

    def test_embeddings_as_they_were(self, client: Any, endless_model: Model) -> None:
        assert np.allclose(client.embeddings("any", "the cat").embedding, endless_model.embed("the cat"), atol=1e-6)

    def test_what_is_there(self, client: Any) -> None:
        (loaded,) = client.ps().models
        assert loaded.model == NAME
        (model,) = client.list().models
        assert (model.model, model.details.format) == (NAME, "onnx")
        assert client.show(NAME).modelinfo["llama.context_length"] == 32768

    def test_errors(self, client: Any) -> None:
        error = pytest.importorskip("ollama", reason=REASON).ResponseError
        with pytest.raises(error, match="mirostat") as caught:
            client.chat("llama3", messages=[USER], options={"mirostat": 2})
        assert caught.value.status_code == 400

    def test_several_at_once(self, server: Running, text: str) -> None:
        client = pytest.importorskip("ollama", reason=REASON).AsyncClient(host=server.url)

        async def ask() -> list[str]:
            asked: Any = {"messages": [SYSTEM, USER], "options": {"num_predict": 20}}
            answers = await asyncio.gather(*(client.chat("any", **asked) for _ in range(4)))
            return [answer.message.content for answer in answers]

        assert asyncio.run(ask()) == [text] * 4

    def test_tools(self, client: Any) -> None:
        """The model may choose; what the client sends and gets is the point."""

        def weather(city: str) -> str:
            """Tell the weather.

            Args:
                city: where
            """
            return city

        asked: Any = {"model": "any", "tools": [weather], "options": {"num_predict": 4}}
        first = client.chat(messages=[USER], **asked)
        call = {"function": {"name": "weather", "arguments": {"city": "Bonn"}}}
        turns = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "rain"}, first.message]
        assert client.chat(messages=[*turns, USER], **asked).eval_count == 4


class TestAnthropic:
    @pytest.fixture
    def client(self, server: Running) -> Any:
        library = pytest.importorskip("anthropic", reason=REASON)
        return library.Anthropic(base_url=server.url, api_key="none", max_retries=0)

    ASKED: Any = {"model": "claude", "max_tokens": 20, "system": "be a cat", "messages": [USER]}  # noqa: RUF012

    def test_messages(self, client: Any, text: str) -> None:
        answer = client.messages.create(**self.ASKED)
        assert [block.text for block in answer.content] == [text]
        assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 20)

    def test_a_stream(self, client: Any, text: str) -> None:
        with client.messages.stream(**self.ASKED) as stream:
            assert "".join(stream.text_stream) == text
            final = stream.get_final_message()
        assert final.content[0].text == text
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 20)

    def test_an_answer_goes_back(self, client: Any) -> None:
        first = client.messages.create(**self.ASKED)
        turns = [USER, {"role": "assistant", "content": first.content}, USER]
        assert client.messages.create(model="claude", max_tokens=3, messages=turns).content[0].text

    def test_tokens_are_counted(self, client: Any, endless_model: Model) -> None:
        counted = client.messages.count_tokens(model="claude", system="be a cat", messages=[USER])
        assert counted.input_tokens == len(endless_model.tokenizer.encode(RENDERED, add_special_tokens=False).ids)

    def test_tools(self, client: Any) -> None:
        tools = [{"name": "f", "input_schema": {"type": "object", "properties": {"a": {"enum": ["b"]}}}}]
        asked: Any = {**self.ASKED, "tools": tools, "max_tokens": 200}
        answer = client.messages.create(**asked, tool_choice={"type": "tool", "name": "f"})
        (block,) = answer.content
        assert (block.type, block.name) == ("tool_use", "f")
        with client.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
            assert stream.get_final_message().content[0].name == "f"
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "b"}
        turns = [USER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(**{**self.ASKED, "messages": turns}).content

    def test_errors(self, client: Any, endless_model: Model) -> None:
        library = pytest.importorskip("anthropic", reason=REASON)
        with pytest.raises(library.BadRequestError, match="thinking"):
            client.messages.create(**self.ASKED, thinking={"type": "enabled", "budget_tokens": 1024})
        with serving(endless_model, token="sesame", strict=True) as running:
            with pytest.raises(library.AuthenticationError):
                library.Anthropic(base_url=running.url, api_key="wrong").messages.create(**self.ASKED)
            right = library.Anthropic(base_url=running.url, api_key="sesame", max_retries=0)
            with pytest.raises(library.NotFoundError, match="no model 'claude'"):
                right.messages.create(**self.ASKED)
            assert right.messages.create(**{**self.ASKED, "model": NAME}).content
