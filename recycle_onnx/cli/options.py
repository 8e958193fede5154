"""Options that commands share: where a model runs, how to load it, and how to continue a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recycle_onnx.cli.untrained import note_if_untrained
from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json, read_text

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig
    from recycle_onnx.runtime.model import RecycleModel
    from recycle_onnx.runtime.structured import Constraint

Command = TypeVar("Command", bound=Callable[..., Any])

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
    *PLACING,
    click.option("--verify-files", is_flag=True, help="Hash the weights again before loading them."),
    click.option("--prepacked", is_flag=True, help="Keep weights in the user's cache as this processor wants them."),
)

CONTROLS = (
    click.option("--strategy", help="auto, full, alternate, verify or lookup.  [default: the bundle's, which is auto]"),
    click.option("--chain", type=int, help="Most tokens to propose a cycle.  [default: 1 for verify, otherwise 4]"),
    click.option("--min-confidence", type=float, help="Propose no token less likely to the module.  [default: 0]"),
    click.option("--min-new-tokens", type=int, help="No token that ends the text comes before so many."),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-k", type=int, help="Sample among so many tokens; 0 for all."),
    click.option("--top-p", type=float, help="Sample within this probability; 1 for all."),
    click.option("--min-p", type=float, help="Sample among tokens so likely, relative to the likeliest; 0 for all."),
    click.option(
        "--repetition-penalty", type=float, help="Divides the logits of tokens in prompt and text; 1 for none."
    ),
    click.option("--presence-penalty", type=float, help="Taken off the logits of tokens in the text; 0 for none."),
    click.option("--frequency-penalty", type=float, help="The same for every time they came; 0 for none."),
    click.option("--no-repeat-ngram-size", type=int, help="No so many tokens stand together twice; 0 for no limit."),
    click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Added to a token's logit; may be repeated."),
    click.option("--seed", type=int, help="The same seed gives the same text.  [default: 0]"),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated."),
    click.option(
        "--stop-ids", multiple=True, type=int, metavar="ID", help="Token that ends it, not the bundle's; repeat."
    ),
    click.option("--json-schema", type=Path, metavar="FILE", help="The text is JSON that this schema describes."),
    click.option("--regex", metavar="PATTERN", help="The text is one that this matches from beginning to end."),
    click.option("--grammar", type=Path, metavar="FILE", help="The text is one of this grammar, in Lark or GBNF."),
)


def placing(command: Command) -> Command:
    """Add `--provider` and what belongs to it, for `places`."""
    return _with(command, PLACING)


def loading(command: Command) -> Command:
    """Add `--threads`, `--verify-files`, `--prepacked` and those of `placing`, for `load`."""
    return _with(command, LOADING)


def controls(default_new_tokens: int) -> Callable[[Command], Command]:
    """Add the settings of `GenerationConfig`, for `config` to gather."""
    most = click.option(
        "--max-new-tokens", "-n", type=int, help=f"[default: the bundle's, otherwise {default_new_tokens}]"
    )
    return lambda command: _with(command, (most, *CONTROLS))


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def load(bundle: Path, settings: dict[str, Any]) -> RecycleModel:
    """Load a bundle as the options say, and take them out of `settings`."""
    import recycle_onnx

    return recycle_onnx.load(
        bundle,
        **places(settings),
        threads=settings.pop("threads"),
        verify=settings.pop("verify_files"),
        prepacked=settings.pop("prepacked"),
    )


def note_module(model: RecycleModel, config: GenerationConfig) -> None:
    """Say so where `config` counts on a module that was never trained; nothing where there is none."""
    if "verify" in model.strategies:
        note_if_untrained(model.module_trained, config.strategy or model.bundle.manifest.default_strategy)


def places(settings: dict[str, Any]) -> dict[str, Any]:
    """What `recycle_onnx.load` takes of the options of `placing`, and take them out of `settings`.

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
    """Names and values of an option that may be repeated.

    Raises:
        InputError: one is no KEY=VALUE.
    """
    for text in texts:
        if "=" not in text.strip("="):
            raise InputError(f"--{option} is {text!r}; expected a name and a value, as in {example}")
    return dict(text.split("=", 1) for text in texts)


def config(model: RecycleModel, settings: dict[str, Any], default_new_tokens: int) -> GenerationConfig:
    """The bundle's settings, with what was given on the command line in their place.

    Raises:
        InputError: a setting out of range.
    """
    given: Any = {name: value for name, value in settings.items() if value is not None and value != ()}
    if "logit_bias" in given:
        given["logit_bias"] = dict(map(_bias, given["logit_bias"]))
    if constraint := _constraint(given):
        given["constraint"] = constraint
    if model.generation_config.max_new_tokens is None:
        given.setdefault("max_new_tokens", default_new_tokens)
    return model.generation_config.updated(**given)


def _constraint(given: dict[str, Any]) -> Constraint | None:
    """Take the one that was given out of the settings."""
    from recycle_onnx.runtime.structured import Grammar, JsonSchema, Regex

    found = {name: given.pop(name) for name in ("json_schema", "regex", "grammar") if name in given}
    if len(found) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in found)
        raise InputError(f"{options} were given; expected one of them, as a text follows one constraint")
    if "json_schema" in found:
        return JsonSchema(read_json(found["json_schema"]))
    if "grammar" in found:
        return Grammar(read_text(found["grammar"]))
    return Regex(found["regex"]) if found else None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise InputError(f"logit-bias is {text!r}; expected a token id and a number, as in 42=-1.5") from error
