"""From an order to a generation: settings, the prompt's tokens, and a cache that knows its beginning."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from recycle_onnx.errors import InputError
from recycle_onnx.extras import install_command, is_installed
from recycle_onnx.runtime.chat_template import ChatTemplate
from recycle_onnx.runtime.config import Overrides
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.generation import Generation
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.settings import check_plan
from recycle_onnx.runtime.structured import Constraint, JsonSchema
from recycle_onnx.runtime.text import count, encode
from recycle_onnx.runtime.tools.grammar import CallGrammar
from recycle_onnx.runtime.tools.thoughts import with_thoughts
from recycle_onnx.runtime.tools.tool_chat import NO_TOOLS, ToolChat, ToolUse
from recycle_onnx.serve.errors import ApiError, naming
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.metrics import Metrics
from recycle_onnx.serve.orders import MESSAGES, Fields, Order, Prompt, Turns
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.prompt_files import PromptFiles
from recycle_onnx.serve.prompt_saver import PromptSaver
from recycle_onnx.serve.trial import Trials

SAVE_SECONDS = 5.0
"""What saving may take at the end of the server, beside the seconds that its connections have."""


class Engine:
    """One model, the caches of what it read, and the counts of what it does."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.template = ChatTemplate.find(model.bundle.folder)
        self.tool_chat = ToolChat(ChatTemplate.for_tools(model.bundle.folder), model.tokenizer)
        self.metrics = Metrics()
        self._saver = _saver(model, limits)
        self._caches = PrefixCaches(model, limits.caches, self._saver, self.metrics.count_restored)
        self._trials = Trials(model, limits.schema_seconds)

    def close(self) -> None:
        """Save what was read and is on no disk yet, as far as a few seconds allow."""
        if self._saver is not None:
            self._saver.close(SAVE_SECONDS)

    def order(self, prompt: Prompt, settings: Overrides, fields: Fields = MESSAGES) -> Order:
        """Check settings against the model and fill in the bundle's own, before a worker is needed.

        Raises:
            InputError: settings that contradict each other.
            ApiError: a strategy or tokens that the model has not, or tools and a format of the answer that do not go
                together.
        """
        self._check_strategy(settings.get("strategy"))
        stop = settings.get("stop", ())
        stops = self.template.stops if isinstance(prompt, Turns) else ()
        # A seed of our own where none is asked for: the answer tells it, and whoever sends it back gets the same text.
        whole: Overrides = {"seed": secrets.randbits(31), **settings}
        whole["stop"] = [*stops, *((stop,) if isinstance(stop, str) else stop)]
        self._check_plan(whole)
        config = self.model.generation_config.updated(**whole)
        with naming("logit_bias"):
            config.check_vocabulary(self.model.bundle.manifest.graphs["full"].vocab_size)
        use = self._use(prompt, settings.get("constraint"), fields.answer)
        thoughts = None
        if use is None and isinstance(prompt, Turns) and config.constraint is None and self.tool_chat.thinks:
            thoughts = self.tool_chat.use(NO_TOOLS, None, prompt.variables)
        return Order(prompt, config, use, fields, thoughts)

    @contextmanager
    def generate(self, order: Order) -> Iterator[Generation]:
        """Start what was ordered, in a worker's thread; its cache is given back at the end.

        Raises:
            ApiError: the prompt or the schema cannot be followed, or the prompt is longer than the context.
        """
        with naming(order.fields.prompt):
            order = order.constrained()
        self._try_constraint(order)
        with naming(order.fields.prompt):
            ids = self.ids(order.prompt)
            self._check_length(ids, order.fields.prompt)
            self.model.prompt_ids(ids)
        strategy = order.config.strategy or self.model.bundle.manifest.default_strategy
        with self._caches.lend(ids, strategy) as decoder:
            yield self._follow_constraint(order, ids, decoder)

    def _use(self, prompt: Prompt, answer: Constraint | None, param: str) -> ToolUse | None:
        """Return how an answer calls tools, None where it has none; `answer`, of the field `param`, is one without."""
        if not (isinstance(prompt, Turns) and prompt.tools.tools):
            return None
        if not is_installed("structured"):
            needed = (
                f"tools need llguidance, which is not installed on the server; try: {install_command('structured')}"
            )
            raise ApiError(400, "unsupported_value", needed, "tools")
        with naming("tools"):
            self.tool_chat.check(prompt.tools)
        described = answer if isinstance(answer, JsonSchema) else None
        if described is not None and prompt.tools.mode == "none":
            return None
        try:
            return self.tool_chat.use(prompt.tools, described, prompt.variables)
        except InputError as error:
            raise ApiError(400, "unsupported_value", str(error), param) from error

    def _follow_constraint(self, order: Order, ids: list[int], decoder: Decoder) -> Generation:
        """Start a generation; where the schema of a tool cannot be followed, name the tool."""
        try:
            return self.model.stream(ids, order.config, decoder=decoder)
        except InputError:
            constraint = order.config.constraint
            if isinstance(constraint, CallGrammar):
                self._check_tools(constraint, order)
            elif constraint is not None:
                with naming(order.fields.answer):
                    self.model.check_constraint(constraint, order.config)
            raise

    def _check_tools(self, grammar: CallGrammar, order: Order) -> None:
        for name, schema in grammar.schemas:
            with naming("tools", f"the parameters of tool {name!r}: "):
                self.model.check_constraint(JsonSchema(schema), order.config)

    def _try_constraint(self, order: Order) -> None:
        with naming(order.fields.answer if order.use is None else "tools"):
            self._trials.check(order.config.constraint, order.config.stop_ids)

    def _check_strategy(self, strategy: str | None) -> None:
        known = self.model.strategies
        if strategy is not None and strategy not in known:
            message = f"strategy {strategy!r} needs a recyclable module, which this model has not; it has: "
            raise ApiError(400, "unsupported_value", message + ", ".join(known), "strategy")

    def check_thinks(self, param: str) -> None:
        """Refuse to have a thought asked for, by the field `param`, of a model whose chat template knows none.

        Raises:
            ApiError: 400.
        """
        if not self.tool_chat.thinks:
            message = f"{param}: this model's chat template knows no thoughts; leave it out"
            raise ApiError(400, "unsupported_value", message, param)

    def _check_plan(self, said: Overrides) -> None:
        """Refuse a chain or a confidence that the strategy does not know, by the name of its field."""
        own = self.model.generation_config
        strategy = said.get("strategy", own.strategy)
        with naming("chain"):
            check_plan(strategy, said.get("chain", own.chain), 0.0)
        with naming("min_confidence"):
            check_plan(strategy, None, said.get("min_confidence", own.min_confidence))

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt; of one that is much longer than the context perhaps only the beginning.

        Raises:
            InputError: the chat template refuses the messages.
        """
        if isinstance(prompt, Turns):
            return self._encode(self.rendered(prompt), self.template.special_tokens)
        return self._encode(prompt, special_tokens=True) if isinstance(prompt, str) else prompt

    def rendered(self, turns: Turns) -> str:
        """Return the text of messages as the template makes it, tools included.

        Raises:
            InputError: it refuses them.
        """
        if turns.has_tools:
            messages = with_thoughts(turns.messages, self.tool_chat.template.text)
            return self.tool_chat.render(messages, turns.tools, turns.variables)
        return self.template.render(with_thoughts(turns.messages, self.template.text), **turns.variables)

    def _encode(self, text: str, special_tokens: bool) -> list[int]:
        context = self.model.bundle.manifest.context_length
        return encode(self.model.tokenizer, text, special_tokens, context)

    def _check_length(self, ids: list[int], param: str) -> None:
        longest = self.model.bundle.manifest.context_length - 1
        if len(ids) > longest:
            message = f"the prompt has {count(ids, longest)}; the context has room for {longest} and an answer"
            raise ApiError(400, "context_length_exceeded", message, param)


def _saver(model: Model, limits: Limits) -> PromptSaver | None:
    if not limits.prompt_cache_gb:
        return None
    return PromptSaver(PromptFiles(model, limits.prompt_cache_gb * 1e9), max(1, limits.caches))
