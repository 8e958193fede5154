"""LangChain: python langchain_client.py URL. What it gets is printed as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr

URL, KEY = f"{sys.argv[1]}/v1", SecretStr("none")


class get_weather(BaseModel):  # noqa: N801
    """The weather in a city."""

    city: str = Field(max_length=8)


class Animal(BaseModel):
    """An animal and its legs."""

    name: Literal["cat", "dog"]
    legs: Literal[2, 4]


def main() -> None:
    model = ChatOpenAI(base_url=URL, api_key=KEY, model="any", temperature=0, max_retries=0, seed=7, max_tokens=200)
    asked = [HumanMessage("the cat")]
    calling = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    called = calling.invoke(asked)
    result = ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"])
    gathered: Any = None
    for chunk in calling.stream(asked):
        gathered = chunk if gathered is None else gathered + chunk
    structured: dict[str, Any] = {
        method: model.with_structured_output(Animal, method=method).invoke(asked).model_dump()  # type: ignore[union-attr]
        for method in ("function_calling", "json_schema")
    }
    embeddings = OpenAIEmbeddings(base_url=URL, api_key=KEY, model="any", check_embedding_ctx_length=False)
    answers = {
        "text": model.invoke(asked).content,
        "streamed": "".join(str(chunk.content) for chunk in model.stream(asked)),
        "call": plain(called.tool_calls),
        "streamed_call": plain(gathered.tool_calls),
        "afterwards": model.invoke([*asked, called, result]).response_metadata["finish_reason"],
        "structured": structured,
        "embeddings": embeddings.embed_documents(["the cat", "a dog"]),
    }
    print(json.dumps(answers))


def plain(calls: list[Any]) -> list[Any]:
    return [[call["name"], call["args"]] for call in calls]


main()
