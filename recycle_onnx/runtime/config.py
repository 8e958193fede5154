"""The controls of a generation in one typed object, with defaults from the bundle's generation_config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.runtime.decoding.processors import Processor, StatefulProcessor
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.decoding.strategies import check_plan
from recycle_onnx.runtime.ranges import check
from recycle_onnx.runtime.structured import Constraint

MOST_LOGPROBS = 20
MOST_BIAS = 1e9


class UnknownSettingError(InputError, TypeError):
    """A keyword that is no setting; a TypeError too, as Python has it."""


class Biases(dict[int, float]):
    """Numbers by token id, not to be changed."""

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("a GenerationConfig cannot be changed; config.updated(logit_bias=…) makes another one")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Biases, (dict(self),)


class Overrides(TypedDict, total=False):
    """The fields of `GenerationConfig` as keywords of `generate` and `stream`."""

    max_new_tokens: int | None
    min_new_tokens: int
    strategy: str | None
    chain: int | None
    min_confidence: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float]
    stop: Sequence[str]
    stop_ids: Iterable[int] | None
    seed: int
    logprobs: int | None
    processors: Iterable[Processor | StatefulProcessor]
    constraint: Constraint | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a text is continued; checked when it is made. Names are those of transformers and OpenAI's interface.

    Args:
        max_new_tokens: most tokens to make; None and anything beyond it means to the end of the context.
        min_new_tokens: no stop id is chosen before so many tokens. (Stop strings end the text wherever they come.)
        strategy: `auto`, `full`, `alternate`, `verify` or `lookup`; None for the bundle's default, `auto`.
        chain: most tokens that `verify` (default 1), `lookup` or `auto` (4) proposes a cycle.
        min_confidence: the module proposes no token to which it gives less probability.
        temperature: 0 is greedy; `top_k`, `top_p`, `min_p` and `seed` then change nothing.
        top_k: sample among so many most likely tokens; 0 for all.
        top_p: sample among the fewest most likely tokens that have this probability together.
        min_p: sample among the tokens that are at least so likely, relative to the most likely one.
        repetition_penalty: of tokens in prompt and text, logits above 0 are divided by it, others multiplied
            (arXiv 1909.05858; transformers); 1 for none.
        presence_penalty: taken off the logits of tokens in the new text (OpenAI, vLLM); -2 to 2.
        frequency_penalty: the same once for every time the token came; -2 to 2.
        no_repeat_ngram_size: no so many tokens stand together twice in prompt and text (transformers); 0 for no limit.
        logit_bias: what is added to the logits of token ids; minus infinity forbids one.
        stop: strings that end the text, themselves left out.
        stop_ids: token ids that end the text, in place of the model's own (as transformers' `eos_token_id`): None for
            the model's own, an empty list for none.
        seed: the same seed gives the same text under `full`, `verify`, `lookup` and `auto`.
        logprobs: give each token's log-probability, and those of so many most likely tokens (0 to 20).
        processors: callables (ids, logits) -> logits, applied in this order after the settings above and before
            temperature; or objects with a state (see `runtime.processors`).
        constraint: what the text must be: a `JsonSchema`, `Regex` or `Grammar` (see `runtime.structured`); a stop id
            is chosen where it is complete, and only there.

    Raises:
        InputError: a value of another kind or out of range, two that contradict each other, or an unknown name.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    strategy: str | None = None
    chain: int | None = None
    min_confidence: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    stop_ids: Iterable[int] | None = None
    seed: int = 0
    logprobs: int | None = None
    processors: Iterable[Processor | StatefulProcessor] = ()
    constraint: Constraint | None = None

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse names that are no settings before Python does, and say which one was meant."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected some of: {', '.join(known)}"
                raise UnknownSettingError(f"setting {name!r} is not known; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._own("logit_bias", Biases, "token ids with numbers")
        self._own("stop", lambda stop: (stop,) if isinstance(stop, str) else tuple(stop), "a list of strings")
        self._own("stop_ids", lambda ids: None if ids is None else tuple(ids), "a list of token ids, or None")
        self._own("processors", tuple, "a list of callables")
        self._check_lengths()
        self._check_penalties()
        self._check_lists()
        self._check_strategy()
        _ = self.sampling

    def _own(self, name: str, copy: Callable[[Any], object], expected: str) -> None:
        """Keep a copy that nobody else can change."""
        value = getattr(self, name)
        try:
            object.__setattr__(self, name, copy(value))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name.replace('_', '-')} is {value!r}; expected {expected}") from error

    def _check_lengths(self) -> None:
        if self.max_new_tokens is not None:
            check("max_new_tokens", self.max_new_tokens, lambda n: n >= 1, "at least 1", whole=True)
        check("min_new_tokens", self.min_new_tokens, lambda n: n >= 0, "0 or more", whole=True)
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min-new-tokens is {self.min_new_tokens}, max-new-tokens {self.max_new_tokens}; "
                "expected no more than that"
            )

    def _check_penalties(self) -> None:
        check("repetition_penalty", self.repetition_penalty, lambda x: 0.01 <= x <= 100, "0.01 to 100, 1 for none")
        for name in ("presence_penalty", "frequency_penalty"):
            check(name, getattr(self, name), lambda x: -2 <= x <= 2, "-2 to 2, 0 for none")
        check("no_repeat_ngram_size", self.no_repeat_ngram_size, lambda n: n >= 0, "0 (no limit) or more", whole=True)

    def _check_strategy(self) -> None:
        if not isinstance(self.strategy, str | None):
            raise InputError(f"strategy is {self.strategy!r}; expected a name, or None for the bundle's own")
        check_plan(self.strategy, self.chain, self.min_confidence)

    def _check_lists(self) -> None:
        for token, bias in self.logit_bias.items():
            check("a token id of logit_bias", token, lambda n: n >= 0, "0 or more", whole=True)
            if bias != float("-inf"):
                fits = f"minus infinity, or {-MOST_BIAS:g} to {MOST_BIAS:g}"
                check(f"logit_bias of token {token}", bias, lambda x: abs(x) <= MOST_BIAS, fits)
        for token in self.stop_ids or ():
            check("a token id of stop_ids", token, lambda n: n >= 0, "0 or more", whole=True)
        for stop in self.stop:
            if not isinstance(stop, str):
                raise InputError(f"stop has {stop!r}; expected strings, and token ids in stop_ids")
        if self.logprobs is not None:
            fits = f"0 (the chosen token only) to {MOST_LOGPROBS}"
            check("logprobs", self.logprobs, lambda n: 0 <= n <= MOST_LOGPROBS, fits, whole=True)
        for processor in self.processors:
            if not (callable(processor) or isinstance(processor, StatefulProcessor)):
                raise InputError(f"processors has {processor!r}; expected callables (ids, logits) -> logits")
        if not isinstance(self.constraint, Constraint | None):
            raise InputError(f"constraint is {self.constraint!r}; expected a JsonSchema, Regex or Grammar")

    @property
    def sampling(self) -> Sampling:
        """How a token is taken from processed logits."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed, self.min_p)

    def updated(self, **overrides: Unpack[Overrides]) -> GenerationConfig:
        """The same with some settings replaced, checked again.

        A new `max_new_tokens` lowers the `min_new_tokens` that there was, unless a new one is given with it.

        Raises:
            InputError: as for a new one.
        """
        most = overrides.get("max_new_tokens")
        if isinstance(most, int) and most < self.min_new_tokens:
            overrides.setdefault("min_new_tokens", max(0, most))
        return replace(self, **overrides) if overrides else self

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a vocabulary of `size` does not have.

        Raises:
            InputError: in `logit_bias` or `stop_ids`.
        """
        for name, ids in (("logit-bias", self.logit_bias), ("stop-ids", self.stop_ids or ())):
            if bad := [token for token in ids if token >= size]:
                raise InputError(f"{name} has token id {bad[0]}, which is outside the vocabulary of {size}")


GREEDY = GenerationConfig()
"""For measurements: no setting of the bundle's but the tokens that end a text."""

DEFAULTS = (
    "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "min_new_tokens",
)  # fmt: skip
"""Fields that generation_config.json may hold under the same name."""


def read_defaults(path: Path) -> GenerationConfig:
    """The defaults in a generation_config.json as transformers writes it; all greedy where there is none.

    Without `do_sample` the temperature is 0, with it 1 unless the file says another. Fields that are null or missing
    keep our defaults, others that we do not know are ignored. A `top_k` of -1 is none, as in vLLM.

    Raises:
        InputError: not JSON, or a value out of range; the line names the file.
    """
    raw = read_json(path) if path.exists() else {}
    known: dict[str, Any] = {name: raw[name] for name in DEFAULTS if raw.get(name) is not None}
    if known.get("top_k") == -1:
        known["top_k"] = 0
    if raw.get("do_sample"):
        known["temperature"] = 1.0 if raw.get("temperature") is None else raw["temperature"]
    try:
        return GenerationConfig(**known, stop_ids=_stop_ids(raw.get("eos_token_id")))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _stop_ids(eos: object) -> list[int]:
    ids: list[Any] = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise InputError(f"eos_token_id is {eos!r}; expected a token id, a list of them, or null")
    return ids
