"""`recycle-onnx chat`: the command, and the loop over lines; `chat_view` shows answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from recycle_onnx.cli import options
from recycle_onnx.cli.chat_input import Lines
from recycle_onnx.cli.chat_view import View
from recycle_onnx.cli.generate import summary
from recycle_onnx.cli.report import echo
from recycle_onnx.errors import InputError, RecycleError

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig
    from recycle_onnx.runtime.conversation import Conversation
    from recycle_onnx.runtime.generation import Result
    from recycle_onnx.runtime.model import RecycleModel

DEFAULT_NEW_TOKENS = 512
COMMANDS = {
    "/reset": "forget all turns but the system message",
    "/strategy [NAME]": "show or change how tokens are made",
    "/tint": "show recycled tokens green, or markdown again",
    "/stats": "what the last answer took",
    "/save FILE": "write the conversation, caches included",
    "/load FILE": "go on with a saved one",
    "/help": "this",
    "/quit": "end, as Ctrl-D does",
}
HELP = "\n".join(f"{name:<18}{text}" for name, text in COMMANDS.items())
HINTS = f'''{HELP}
"""               begins and ends a message of several lines
//                begins a message with a /
Ctrl-C            stops an answer'''


@click.command()
@click.argument("bundle", type=Path)
@click.option("--system", help="What the model is told before all turns.")
@click.option("--tint", is_flag=True, help="Show recycled tokens green, and no markdown.")
@click.option(
    "--overflow",
    type=click.Choice(["error", "drop_oldest"]),
    default="error",
    show_default=True,
    help="Where the turns no longer fit the context.",
)
@options.controls(DEFAULT_NEW_TOKENS)
@options.loading
def chat(bundle: Path, system: str | None, tint: bool, overflow: str, **settings: Any) -> None:
    """Chat with the model in BUNDLE; /help lists the commands.

    Ctrl-C stops an answer, Ctrl-D ends the chat. Without a terminal every line of standard input is a message, its
    answer goes to standard output and everything else to standard error; the first error ends it.
    """
    model = options.load(bundle, settings)
    config = options.config(model, settings, DEFAULT_NEW_TOKENS)
    model.stream([0], config)  # a setting that makes no sense is refused before anybody has typed anything
    conversation = model.conversation(system, overflow=overflow)
    lines = Lines.standard()
    console = Console(highlight=False, force_terminal=None if lines.interactive else False)
    options.note_module(model, config)
    session = Session(model, conversation, config, View(console, tint))
    if lines.interactive:
        echo(f"{bundle}, turns as in template {conversation.template.name!r}; /help lists the commands", err=True)
    _loop(session, lines)


def _loop(session: Session, lines: Lines) -> None:
    while not session.ended:
        try:
            session.take(lines.read())
        except EOFError:
            return
        except KeyboardInterrupt:
            if not lines.interactive:
                raise
            echo(err=True)
        except RecycleError as error:
            if not lines.interactive:
                raise
            echo(f"Error: {error}", err=True)


class Session:
    """A conversation, with the settings that commands change."""

    def __init__(self, model: RecycleModel, conversation: Conversation, config: GenerationConfig, view: View) -> None:
        self.model, self.conversation, self.config, self.view = model, conversation, config, view
        self.ended = False
        self._last: Result | None = None
        self._system = [message for message in conversation.messages if message["role"] == "system"]

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a message to answer."""
        if line.startswith("/") and not line.startswith("//"):
            self._command(*line.split(maxsplit=1))
        elif line.strip():
            self._answer(line[1:] if line.startswith("//") else line)

    def _answer(self, message: str) -> None:
        with self.view.answer() as answer:
            generation = self.conversation.send(message, self.config, progress=answer.reading)
            answer.show(generation)
        self._last = generation.result
        if self._last.finish_reason == "length":
            echo(f"(cut off after {len(self._last.tokens)} tokens; see --max-new-tokens)", err=True)

    def _command(self, name: str, argument: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/strategy": self._strategy,
            "/tint": self._tint,
            "/stats": self._stats,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: echo(HINTS, err=True),
            "/quit": self._quit,
        }
        if name not in commands:
            raise InputError(
                f"no command {name}; expected one of: {', '.join(commands)} (// begins a message with a /)"
            )
        commands[name](argument.strip())

    def _reset(self, _: str) -> None:
        self.conversation.messages = self._system
        self._last = None

    def _strategy(self, name: str) -> None:
        model = self.model
        if name and name not in model.strategies:
            raise InputError(f"strategy {name!r} is not known; expected one of: {', '.join(model.strategies)}")
        if name:
            config = self.config.updated(strategy=name)
            model.stream([0], config)  # a chain, for instance, may not suit it
            self.config = config
        echo(f"strategy: {self.config.strategy or model.bundle.manifest.default_strategy}", err=True)

    def _tint(self, _: str) -> None:
        self.view.tint = not self.view.tint
        echo(f"recycled tokens are {'green' if self.view.tint else 'not shown'}", err=True)

    def _stats(self, _: str) -> None:
        if self._last is None:
            raise InputError("no answer yet; send a message first")
        stats, context = self._last.stats, self.model.bundle.manifest.context_length
        used = stats.prompt_tokens + stats.new_tokens
        for line in summary(self._last):
            echo(line, err=True)
        echo(
            f"{used} of {context} tokens of the context; {stats.reused_tokens} of {stats.prompt_tokens} prompt tokens "
            "were in the caches",
            err=True,
        )

    def _save(self, path: str) -> None:
        self.conversation.save(_file(path, "/save"))

    def _load(self, path: str) -> None:
        overflow = self.conversation.overflow  # what was asked for on the command line
        self.conversation = self.model.load_conversation(_file(path, "/load"))
        self.conversation.overflow = overflow
        self._system = [message for message in self.conversation.messages if message["role"] == "system"]
        self._last = None
        echo(f"{len(self.conversation.messages)} messages", err=True)

    def _quit(self, _: str) -> None:
        self.ended = True


def _file(path: str, command: str) -> Path:
    if not path:
        raise InputError(f"{command} needs the name of a file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from error
