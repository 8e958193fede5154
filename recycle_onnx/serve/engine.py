"""From a request to a generation: settings, the prompt's tokens, and a cache that knows its beginning."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate
from recycle_onnx.runtime.config import GenerationConfig, Overrides
from recycle_onnx.runtime.generation import Generation
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.text import count, encode
from recycle_onnx.serve import answers, formats, schema
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.token_text import TokenText
from recycle_onnx.serve.trial import Trials
from recycle_onnx.serve.worker import Opener

LONGEST_COMPLETION = 16
"""What OpenAI's API makes of a text where nothing is said."""


@dataclass(frozen=True)
class Order:
    """How to generate, and the prompt's tokens, which are made in the worker's thread."""

    config: GenerationConfig
    prompt: Callable[[], list[int]]


class Engine:
    """One model, and the caches of what it read."""

    def __init__(self, model: RecycleModel, limits: Limits) -> None:
        self.model, self._limits = model, limits
        self.names = TokenText(model.tokenizer)
        self.template = ChatTemplate.find(model.bundle.folder)
        self.fingerprint = f"recycle-onnx-{model.bundle.digest[:12]}"
        self._caches = PrefixCaches(model, limits.caches)
        self._trials = Trials(model, limits.schema_seconds)

    def describe(self) -> answers.ModelRecycle:
        """What the bundle can do."""
        manifest = self.model.bundle.manifest
        return answers.ModelRecycle(
            strategies=list(manifest.strategies),
            default_strategy=manifest.default_strategy,
            chat=self.template.name != PLAIN,
            context_length=manifest.context_length,
            precision=manifest.precision,
            parameters=manifest.base.get("parameters"),
        )

    def text_order(self, asked: schema.CompletionRequest) -> Order:
        """Of a text to continue.

        Raises:
            InputError: settings that contradict each other.
        """
        config = self._config(asked, asked.max_tokens or LONGEST_COMPLETION, asked.top_logprobs)
        return Order(config, lambda: self._text_ids(asked.prompt))

    def chat_order(self, asked: schema.ChatRequest) -> Order:
        """Of messages to answer.

        Raises:
            InputError: settings that contradict each other, or a schema that is none.
            ApiError: the schema is too large.
        """
        limit = asked.max_completion_tokens or asked.max_tokens
        config = self._config(asked, limit, asked.top_logprobs, stops=self.template.stops)
        config = config.updated(constraint=formats.constraint(asked.response_format, self._limits.schema_bytes))
        turns = [message.as_turn() for message in asked.messages]
        return Order(config, lambda: self._encode(self.template.render(turns), self.template.special_tokens))

    def opener(self, order: Order) -> Opener:
        """What a worker calls in its thread."""
        return lambda: self._open(order)

    @contextmanager
    def _open(self, order: Order) -> Iterator[Generation]:
        self._trials.check(order.config.constraint, order.config.stop_ids)
        ids = order.prompt()
        self._check_length(ids)
        strategy = order.config.strategy or self.model.bundle.manifest.default_strategy
        with self._caches.lend(ids, strategy) as decoder:
            yield self.model.stream(ids, order.config, decoder=decoder)

    def _config(
        self, asked: schema.Request, limit: int | None, logprobs: int | None, stops: tuple[str, ...] = ()
    ) -> GenerationConfig:
        said = asked.settings()
        self._check_strategy(said.get("strategy"))
        stop = said.pop("stop", ())
        settings: Overrides = {"seed": secrets.randbits(31), **said, "logprobs": logprobs}
        settings["stop"] = [*stops, *((stop,) if isinstance(stop, str) else stop)]
        if limit is not None:
            settings["max_new_tokens"] = limit
        return self.model.generation_config.updated(**settings)

    def _check_strategy(self, strategy: str | None) -> None:
        known = self.model.strategies
        if strategy is not None and strategy not in known:
            message = f"strategy {strategy!r} needs a recyclable module, which this model has not; it has: "
            raise ApiError(400, "unsupported_value", message + ", ".join(known), "strategy")

    def _text_ids(self, prompt: str | list[int] | list[str]) -> list[int]:
        if isinstance(prompt, str):
            return self._encode(prompt, special_tokens=True)
        if isinstance(prompt[0], str):
            return self._encode(prompt[0], special_tokens=True)
        return [int(token) for token in prompt]

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        context = self.model.bundle.manifest.context_length
        return encode(self.model.tokenizer, text, special_tokens, context)

    def _check_length(self, ids: list[int]) -> None:
        longest = self.model.bundle.manifest.context_length - 1
        if len(ids) > longest:
            message = f"the prompt has {count(ids, longest)}; the context has room for {longest} and an answer"
            raise ApiError(400, "context_length_exceeded", message)
