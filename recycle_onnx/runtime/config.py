"""The settings of a generation in one typed object, with defaults from the bundle's generation_config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

from recycle_onnx.declaration import declared, documented, setting
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.kinds import refusal
from recycle_onnx.runtime.decoding.processors import Processor, StatefulProcessor
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.settings import ALIASES, SETTINGS, TO_THE_END, Keywords, Settings, check_plan, hint
from recycle_onnx.runtime.structured import Constraint


class UnknownSettingError(InputError, TypeError):
    """A keyword that names no setting; also a TypeError, as Python's own error is."""


class Overrides(Keywords, total=False):
    """The fields of `GenerationConfig` as keywords of `generate`, `stream`, `chat` and `send`, and their aliases."""

    processors: Iterable[Processor | StatefulProcessor]
    constraint: Constraint | None
    max_tokens: int


class ProcessorsKind:
    """The kind of the setting `processors`: callables, or objects with a state."""

    expected = "a list of callables"

    def own(self, name: str, value: Any) -> tuple[Processor | StatefulProcessor, ...]:
        """Return the processors in a tuple of their own, once each is checked."""
        try:
            processors = tuple(value)
        except TypeError as error:
            raise refusal(name, value, self.expected) from error
        for processor in processors:
            if not (callable(processor) or isinstance(processor, StatefulProcessor)):
                raise InputError(f"{name} has {processor!r}; expected callables (ids, logits) -> logits")
        return processors


class ConstraintKind:
    """The kind of the setting `constraint`: a constraint, or None."""

    expected = "a JsonSchema, Regex or Grammar"

    def own(self, name: str, value: Any) -> Constraint | None:
        """Return the constraint, once its type is checked."""
        if not isinstance(value, Constraint | None):
            raise refusal(name, value, self.expected)
        return value


class SettingsClass(type):
    """A class of settings, which takes them by their aliases too, and says what is meant by a name that it lacks."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        """Make an object of the class.

        Raises:
            UnknownSettingError: a name that is no setting.
            InputError: a setting by two of its names.
        """
        return super().__call__(*args, **cls.own_names(settings))

    def own_names(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings by the names of the class's fields; errors as for an object of them."""
        known: list[str] = [f.name for f in fields(cls)]  # type: ignore[arg-type] # each of the classes is a dataclass
        own: dict[str, Any] = {}
        names: dict[str, str] = {}
        for name, value in settings.items():
            setting = ALIASES.get(name, name)
            if setting not in known:
                raise UnknownSettingError(f"setting {name!r} is not known; {hint(name, known)}")
            if setting in own:
                other = name if name != setting else names[setting]
                raise InputError(f"{setting} was set twice, as {other} too; expected one of them")
            own[setting], names[setting] = value, name
        return own


@documented
@dataclass(frozen=True, kw_only=True)
class GenerationConfig(Settings, metaclass=SettingsClass):
    """The settings by which a text is continued, checked when made; names are those of transformers and OpenAI.

    `max_tokens` is taken for `max_new_tokens`, as all neighbours call it so.

    Raises:
        InputError: a value of another kind or out of range, two that contradict each other, or an unknown name.
    """

    processors: Iterable[Processor | StatefulProcessor] = setting(
        (), ProcessorsKind(),
        "Your own functions of logits, applied in their order after the settings above and before temperature.",
        origin="transformers, llama.cpp",
    )  # fmt: skip
    constraint: Constraint | None = setting(
        None, ConstraintKind(),
        "What the text must be: a JsonSchema, Regex or Grammar. A stop id is chosen where it is complete, only there.",
        origin="llguidance",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_plan(self.strategy, self.chain, self.min_confidence)
        for name, about in declared(type(self)).items():
            object.__setattr__(self, name, about.kind.own(name, getattr(self, name)))
        if self.min_new_tokens > self.max_new_tokens != TO_THE_END:
            raise InputError(
                f"min-new-tokens is {self.min_new_tokens}, max-new-tokens {self.max_new_tokens}; "
                "expected no more than that"
            )

    @property
    def sampling(self) -> Sampling:
        """How a token is taken from processed logits."""
        return Sampling(**{f.name: getattr(self, f.name) for f in fields(Sampling)})

    def updated(self, **overrides: Unpack[Overrides]) -> GenerationConfig:
        """Return a copy with some settings replaced, checked again.

        A new `max_new_tokens` lowers the `min_new_tokens` that there was, unless a new one is given with it.

        Raises:
            InputError: as for a new one.
        """
        changes = type(self).own_names(overrides)
        most = changes.get("max_new_tokens")
        if isinstance(most, int) and most < self.min_new_tokens and most != TO_THE_END:
            changes.setdefault("min_new_tokens", max(0, most))
        return replace(self, **changes) if changes else self

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a vocabulary of `size` does not have.

        Raises:
            InputError: in `logit_bias` or `stop_ids`.
        """
        for name, ids in (("logit-bias", self.logit_bias), ("stop-ids", self.stop_ids or ())):
            if bad := [token for token in ids if token >= size]:
                raise InputError(f"{name} has token id {bad[0]}, which is outside the vocabulary of {size}")


GREEDY = GenerationConfig(max_new_tokens=TO_THE_END)
"""For measurements: no setting of the bundle's but the tokens that end a text."""

IN_FILE = tuple(name for name, about in SETTINGS.items() if about.in_file and name != "temperature")
"""Fields that generation_config.json may hold under the same name; `temperature` depends on `do_sample` there."""


def read_defaults(path: Path) -> GenerationConfig:
    """Read the defaults in a generation_config.json as transformers writes it; all greedy where there is none.

    Without `do_sample` the temperature is 0, with it 1 unless the file says another. Fields that are null or missing
    keep our defaults, others that we do not know are ignored. A `top_k` of -1 is none, as in vLLM. A `min_new_tokens`
    above the default of `max_new_tokens` raises that.

    Raises:
        InputError: not JSON, or a value out of range; the line names the file.
    """
    raw = read_json(path) if path.exists() else {}
    known: dict[str, Any] = {name: raw[name] for name in IN_FILE if raw.get(name) is not None}
    if known.get("top_k") == -1:
        known["top_k"] = 0
    if isinstance(least := known.get("min_new_tokens"), int) and least > GenerationConfig.max_new_tokens:
        known.setdefault("max_new_tokens", least)
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
