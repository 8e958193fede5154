"""Many prompts from JSON lines: read and checked, answered by several workers, written in their order.

A line can only fail itself: what is wrong with it becomes its answer, and all others are answered.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recycle_onnx.errors import InputError, RecycleError, TextError
from recycle_onnx.kinds import Biases
from recycle_onnx.runtime.chat_template import check_message
from recycle_onnx.runtime.config import GenerationConfig
from recycle_onnx.runtime.generation import Generation, Result
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.settings import ALIASES, SETTINGS, hint
from recycle_onnx.runtime.structured import Constraint, Grammar, JsonSchema, Regex
from recycle_onnx.untrusted import parse_json

Id = str | int
CONSTRAINTS: dict[str, Callable[[Any], Constraint]] = {"json_schema": JsonSchema, "regex": Regex, "grammar": Grammar}
"""Settings that are objects in Python, and how a line's plain value becomes one."""
FIELDS = ("prompt", "messages", "id", *SETTINGS, *CONSTRAINTS)
"""All that a line may say: another name is refused, since a slip of the keyboard would otherwise pass unseen."""
AHEAD = 4
"""Requests a worker that may be done or waiting before an earlier one is written."""


@dataclass(frozen=True)
class Request:
    """One line: a prompt, or messages of which the last is the user's; and settings of its own.

    `error` says why a line cannot be answered; it then has neither prompt nor settings.
    """

    id: Id
    prompt: str | list[dict[str, Any]]
    settings: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """The outcome of a request: a result, or why there is none."""

    id: Id
    result: Result | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values: none depends on time, so that the same request gives the same line."""
        if self.result is None:
            return {"id": self.id, "error": self.error}
        result = self.result
        fields = {
            "id": self.id,
            "text": result.text,
            "finish_reason": result.finish_reason,
            "strategy": result.strategy,
            "lossless": result.lossless,
            "prompt_tokens": result.stats.prompt_tokens,
            "new_tokens": result.stats.new_tokens,
        }
        return fields if result.logprobs is None else {**fields, "tokens": result.tokens, "logprobs": result.logprobs}

    @property
    def line(self) -> str:
        """The same as a line of JSON, without its end."""
        return json.dumps(self.to_json(), ensure_ascii=False)


class Worker:
    """A worker that answers requests with a model; threads may share it."""

    def __init__(self, model: Model, config: GenerationConfig | None = None) -> None:
        self.model, self.config = model, config or model.generation_config

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what is no fault of a single line, before anything starts.

        Raises:
            InputError: the worker's own settings do not suit the model.
            ModuleNotFoundError: there are messages and no jinja2, or constraints and no llguidance.
        """
        self.model.stream([0], self.config)
        constrained = next((request for request in requests if "constraint" in request.settings), None)
        if constrained:
            with suppress(InputError):
                self.model.stream([0], self._config(constrained))
        if any(not isinstance(request.prompt, str) for request in requests):
            self.model.conversation()

    def __call__(self, request: Request, stopped: threading.Event | None = None) -> Answer:
        """Answer a request, broken off when it is `stopped`; a failure of this request alone gives its error.

        Raises:
            RecycleError: it is not the prompt that is wrong, so that another try may succeed.
            OSError, MemoryError: likewise.
        """
        if request.error is not None:
            return Answer(request.id, None, request.error)
        try:
            generation = self._start(request)
            for _ in generation:
                if stopped and stopped.is_set():
                    generation.cancel()
        except (InputError, TextError) as error:
            return Answer(request.id, None, str(error))
        except (RecycleError, OSError, MemoryError):
            raise
        except Exception as error:  # ours to mend, but the other lines can be answered
            return Answer(request.id, None, f"unexpected {type(error).__name__} ({error}); please report it")
        return Answer(request.id, generation.result)

    def _config(self, request: Request) -> GenerationConfig:
        return self.config.updated(**request.settings)

    def _start(self, request: Request) -> Generation:
        if isinstance(request.prompt, str):
            return self.model.stream(request.prompt, self._config(request))
        *past, last = request.prompt
        return self.model.conversation(messages=past).send(last["content"], self._config(request))


def read_requests(path: Path) -> list[Request]:
    """Read all requests of a file, in order. One without an `id` has its line's number.

    Raises:
        InputError: the file cannot be read, or has no line that can be answered; that names the first line's fault.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error})") from error
    requests: list[Request] = []
    line_of: dict[Id, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = parse_request(line, number)
        first = line_of.setdefault(request.id, number)
        if first != number and request.error is None:
            request = Request(request.id, "", {}, f"id {request.id!r} is that of line {first} too")
        requests.append(request)
    if not requests:
        raise InputError(f'{path}: no requests; expected lines like {{"prompt": "Once upon a time"}}')
    if all(request.error is not None for request in requests):
        raise InputError(f"{path}: no line can be answered; the first one: {requests[0].error}")
    return requests


def parse_request(line: bytes | str, number: int) -> Request:
    """Read a line of JSON: `prompt` or `messages`, perhaps an `id`, and settings by the names of `GenerationConfig`.

    What is wrong with the line is in the request's `error`.
    """
    identity: Id = number
    try:
        fields = _parse_object(line)
        identity = _identity(fields, number)
        _check_names(fields)
        return Request(identity, _prompt(fields), _settings(fields))
    except InputError as error:
        return Request(identity, "", {}, str(error))


def _parse_object(line: bytes | str) -> dict[str, Any]:
    try:
        raw = json.loads(line)
        json.dumps(raw, ensure_ascii=False).encode()  # JSON may escape halves of characters
    except (ValueError, RecursionError) as error:  # what concerns Unicode is a ValueError too
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise InputError(f"expected a JSON object, found {type(raw).__name__}")
    return raw


def _identity(raw: dict[str, Any], number: int) -> Id:
    identity = raw.get("id", number)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise InputError(f"id is {identity!r}; expected a string or a whole number")
    return identity


def _check_names(raw: dict[str, Any]) -> None:
    for name in raw:
        if name not in FIELDS and name not in ALIASES:
            raise InputError(f"field {name!r} is not known; {hint(name, FIELDS)}")
    if ("prompt" in raw) == ("messages" in raw):
        raise InputError("expected either a prompt or messages")


def _prompt(raw: dict[str, Any]) -> str | list[dict[str, Any]]:
    if "prompt" in raw:
        prompt = raw["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"prompt is {prompt!r}; expected some text")
        return prompt
    messages = raw["messages"]
    if not isinstance(messages, list):
        raise InputError(f"messages is {messages!r}; expected a list of objects with role and content, both strings")
    messages = [check_message(message) for message in messages]
    if not messages or messages[-1]["role"] != "user":
        raise InputError("the last of messages is not the user's; expected something to answer")
    return messages


def _settings(raw: dict[str, Any]) -> dict[str, Any]:
    settings = {name: raw[name] for name in (*SETTINGS, *ALIASES) if name in raw}
    if len(asked := [name for name in CONSTRAINTS if name in raw]) > 1:
        raise InputError(f"{' and '.join(asked)} were given; expected one of them, as a text follows one constraint")
    try:
        for name in asked:
            settings["constraint"] = CONSTRAINTS[name](raw[name])
        for name in settings.keys() & SETTINGS.keys():
            if isinstance(kind := SETTINGS[name].kind, Biases):
                settings[name] = kind.from_json(name, settings[name])
        GenerationConfig(**settings)
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"settings {settings!r}: {error}") from error
    return settings


class Finished(NamedTuple):
    """The number of lines of a former run, and of those among them that are errors."""

    lines: int = 0
    failed: int = 0


def finished(path: Path, requests: Sequence[Request]) -> Finished:
    """Count which of `requests` a former run has answered in `path`; a last line that was cut off is taken away.

    Raises:
        InputError: a line is damaged, or is not the answer to the request of its place.
    """
    if not path.exists():
        return Finished()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    failed = sum(_is_error(path, number, line, requests) for number, line in enumerate(lines, start=1))
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return Finished(len(lines), failed)


def _is_error(path: Path, number: int, line: bytes, requests: Sequence[Request]) -> bool:
    try:
        record = parse_json(line)
        answered = record["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}, line {number}: damaged; repair it, or --force to start again") from error
    expected = requests[number - 1].id if number <= len(requests) else None
    if answered != expected:
        of = "no request" if expected is None else f"request {expected!r}"
        raise InputError(f"{path}, line {number}: answers {answered!r}, expected {of}; it belongs to other prompts")
    return "error" in record


def answers(worker: Worker, requests: Sequence[Request], workers: int = 1) -> Generator[Answer, None, None]:
    """Yield answers in the order of the requests, made by so many threads.

    To close the iterator breaks off what is being answered.
    """
    pending: deque[Future[Answer]] = deque()
    stopped = threading.Event()
    waiting = iter(requests)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(pending) < AHEAD * workers and (request := next(waiting, None)) is not None:
                    pending.append(pool.submit(worker, request, stopped))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
