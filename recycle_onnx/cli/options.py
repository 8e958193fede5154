"""Options that commands share: where a model runs, how to load it, and how to continue a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recycle_onnx.cli.declared import Command, option_of
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.declaration import Setting
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, read_text
from recycle_onnx.kinds import Number
from recycle_onnx.runtime.settings import SETTINGS

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig
    from recycle_onnx.runtime.model import Model
    from recycle_onnx.runtime.ort.placing import Placing
    from recycle_onnx.runtime.structured import Constraint

Choices = TypeVar("Choices")

PLACING = (
    click.option("--provider", default="cpu", show_default=True, help="cpu, cuda, openvino, webgpu, …, or auto."),
    click.option("--recycler-provider", metavar="NAME", help="Where the module runs.  [default: the same]"),
    click.option("--provider-option", multiple=True, metavar="KEY=VALUE", help="For the provider; may be repeated."),
    click.option(
        "--recycler-provider-option", multiple=True, metavar="KEY=VALUE", help="For the module's; may be repeated."
    ),
    click.option(
        "--provider-library", multiple=True, metavar="NAME=FILE", help="A plug-in provider to have; may be repeated."
    ),
)
LOADING = (
    click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]"),
    click.option("--fixed-threads", is_flag=True, help="No fewer of them while other programs use the cores."),
    *PLACING,
    click.option("--verify-files", is_flag=True, help="Hash the weights again before loading them."),
    click.option("--prepacked", is_flag=True, help="Keep weights in the user's cache as this processor wants them."),
)

CHATTING = (
    click.option("--system", help="What the model is told before all turns."),
    click.option("--tint", is_flag=True, help="Show recycled tokens green, and no markdown."),
    click.option(
        "--overflow",
        type=click.Choice(["error", "drop_oldest"]),
        default="error",
        show_default=True,
        help="Where the turns no longer fit the context.",
    ),
)
CONSTRAINTS = (
    click.option("--json-schema", type=PATH, metavar="FILE", help="The text is JSON that this schema describes."),
    click.option("--regex", metavar="PATTERN", help="The text is one that this matches from beginning to end."),
    click.option("--grammar", type=PATH, metavar="FILE", help="The text is one of this grammar, in Lark or GBNF."),
)
OTHER_NAMES = {"max_new_tokens": ("-n", "--max-tokens")}
"""Short names of options, and what neighbours call them."""
ASKED_FOR = ("logprobs",)
"""Settings that only some verbs have an option for, as only some show what they bring."""


def placing(command: Command) -> Command:
    """Add `--provider` and what belongs to it, for `places`."""
    return _with(command, PLACING)


def loading(command: Command) -> Command:
    """Add `--threads`, `--fixed-threads`, `--verify-files`, `--prepacked` and those of `placing`, for `load`."""
    return _with(command, LOADING)


def chatting(command: Command) -> Command:
    """Add the options of a conversation in the terminal."""
    return _with(command, CHATTING)


def controls(command: Command) -> Command:
    """Add an option for each setting of a generation that a command line can hold, for `config` to gather."""
    settings = tuple(
        option_of(name, about, unset=_unset(about), other_names=OTHER_NAMES.get(name, ()))
        for name, about in SETTINGS.items()
        if name not in ASKED_FOR
    )
    return _with(command, (*settings, *CONSTRAINTS))


def logprobs(note: str) -> Callable[[Command], Command]:
    """Add `--logprobs`; `note` says where they are shown."""
    about = SETTINGS["logprobs"]
    return option_of("logprobs", replace(about, help=f"{about.help} {note}"), unset=_unset(about))


def _unset(about: Setting) -> str:
    """Say what holds without an option: nothing of a bundle's file is known here, where it may say."""
    own = about.unset or (f"{about.default:g}" if isinstance(about.kind, Number) else "")
    return f"the bundle's, otherwise {own}" if about.in_file else own


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def chosen(choices: type[Choices], settings: dict[str, Any]) -> Choices:
    """Take the options that are fields of a dataclass out of `settings`, and make it of them."""
    names = [field.name for field in fields(choices)]  # type: ignore[arg-type]  # a dataclass
    return choices(**{name: settings.pop(name) for name in names if name in settings})


def load(bundle: Path, settings: dict[str, Any]) -> Model:
    """Load a bundle as the options say, and take them out of `settings`."""
    import recycle_onnx

    return recycle_onnx.load(
        bundle,
        **places(settings),
        threads=settings.pop("threads"),
        fixed_threads=settings.pop("fixed_threads"),
        verify=settings.pop("verify_files"),
        prepacked=settings.pop("prepacked"),
    )


def note_module(model: Model, config: GenerationConfig) -> None:
    """Say so where `config` counts on a module that was never trained; nothing where there is none."""
    if "verify" in model.strategies:
        note_if_untrained(model.module_trained, config.strategy or model.bundle.manifest.default_strategy)


def places(settings: dict[str, Any]) -> Placing:
    """Take the options of `placing` out of `settings`; return what `recycle_onnx.load` takes of them.

    Raises:
        InputError: an option of a provider is no KEY=VALUE.
    """
    import onnxruntime

    from recycle_onnx.runtime.ort.sessions import FATAL_ONLY

    onnxruntime.set_default_logger_severity(FATAL_ONLY)  # errors are raised too, and told in one line
    return {
        "provider": settings.pop("provider"),
        "recycler_provider": settings.pop("recycler_provider"),
        "provider_options": pairs("provider-option", settings.pop("provider_option")),
        "recycler_provider_options": pairs("recycler-provider-option", settings.pop("recycler_provider_option")),
        "provider_libraries": pairs("provider-library", settings.pop("provider_library")),
    }


def pairs(option: str, texts: tuple[str, ...], example: str = "device_id=0") -> dict[str, str]:
    """Return the names and values of an option that may be repeated.

    Raises:
        InputError: one is no KEY=VALUE.
    """
    for text in texts:
        if "=" not in text.strip("="):
            raise InputError(f"--{option} is {text!r}; expected a name and a value, as in {example}")
    return dict(text.split("=", 1) for text in texts)


def config(model: Model, settings: dict[str, Any]) -> GenerationConfig:
    """Make the bundle's settings, with those from the command line in their place.

    Raises:
        InputError: a setting out of range.
    """
    chosen: Any = {name: value for name, value in settings.items() if value is not None and value != ()}
    if "logit_bias" in chosen:
        chosen["logit_bias"] = dict(map(_bias, chosen["logit_bias"]))
    if constraint := _constraint(chosen):
        chosen["constraint"] = constraint
    return model.generation_config.updated(**chosen)


def _constraint(chosen: dict[str, Any]) -> Constraint | None:
    """Take the constraint out of the settings, where there is one."""
    from recycle_onnx.runtime.structured import Grammar, JsonSchema, Regex

    constraints = {name: chosen.pop(name) for name in ("json_schema", "regex", "grammar") if name in chosen}
    if len(constraints) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in constraints)
        raise InputError(f"{options} were given; expected one of them, as a text follows one constraint")
    if "json_schema" in constraints:
        return JsonSchema(read_json(constraints["json_schema"]))
    if "grammar" in constraints:
        return Grammar(read_text(constraints["grammar"]))
    return Regex(constraints["regex"]) if constraints else None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise InputError(f"logit-bias is {text!r}; expected a token id and a number, as in 42=-1.5") from error
