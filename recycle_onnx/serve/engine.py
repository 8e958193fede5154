"""From an order to a generation: settings, the prompt's tokens, and a cache that knows its beginning."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.generation import Generation
from recycle_onnx.runtime.model import RecycleModel
from recycle_onnx.runtime.text import count, encode
from recycle_onnx.serve.errors import ApiError
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.orders import Order, Prompt, Turns
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.trial import Trials


class Engine:
    """One model, and the caches of what it read."""

    def __init__(self, model: RecycleModel, limits: Limits) -> None:
        self.model = model
        self.template = ChatTemplate.find(model.bundle.folder)
        self._caches = PrefixCaches(model, limits.caches)
        self._trials = Trials(model, limits.schema_seconds)

    def order(self, prompt: Prompt, settings: Overrides) -> Order:
        """Check settings against the model and fill in the bundle's own, before a worker is needed.

        Raises:
            InputError: settings that contradict each other.
            ApiError: a strategy that the model has not.
        """
        self._check_strategy(settings.get("strategy"))
        stop = settings.get("stop", ())
        stops = self.template.stops if isinstance(prompt, Turns) else ()
        whole: Overrides = {"seed": secrets.randbits(31), **settings}
        whole["stop"] = [*stops, *((stop,) if isinstance(stop, str) else stop)]
        return Order(prompt, self.model.generation_config.updated(**whole))

    @contextmanager
    def generate(self, order: Order) -> Iterator[Generation]:
        """Start what was ordered, in a worker's thread; its cache is given back at the end.

        Raises:
            InputError: the prompt or the schema cannot be followed.
            ApiError: the prompt is longer than the context.
        """
        self._trials.check(order.config.constraint, order.config.stop_ids)
        ids = self._ids(order.prompt)
        self._check_length(ids)
        strategy = order.config.strategy or self.model.bundle.manifest.default_strategy
        with self._caches.lend(ids, strategy) as decoder:
            yield self.model.stream(ids, order.config, decoder=decoder)

    def _check_strategy(self, strategy: str | None) -> None:
        known = self.model.strategies
        if strategy is not None and strategy not in known:
            message = f"strategy {strategy!r} needs a recyclable module, which this model has not; it has: "
            raise ApiError(400, "unsupported_value", message + ", ".join(known), "strategy")

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Turns):
            return self._encode(self.template.render(prompt.messages), self.template.special_tokens)
        return self._encode(prompt, special_tokens=True) if isinstance(prompt, str) else prompt

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        context = self.model.bundle.manifest.context_length
        return encode(self.model.tokenizer, text, special_tokens, context)

    def _check_length(self, ids: list[int]) -> None:
        longest = self.model.bundle.manifest.context_length - 1
        if len(ids) > longest:
            message = f"the prompt has {count(ids, longest)}; the context has room for {longest} and an answer"
            raise ApiError(400, "context_length_exceeded", message)
