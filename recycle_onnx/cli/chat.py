"""`recycle-onnx chat`: the command, and the loop over lines; `chat_session` does what they say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from recycle_onnx.cli import options
from recycle_onnx.cli.chat_input import Lines
from recycle_onnx.cli.chat_session import Session
from recycle_onnx.cli.chat_view import View
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import echo
from recycle_onnx.errors import RecycleError

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig
    from recycle_onnx.runtime.conversation import Conversation, Overflow
    from recycle_onnx.runtime.model import Model


@dataclass(frozen=True)
class ChatChoices:
    """The options of a conversation in the terminal, by their names."""

    system: str | None
    tint: bool
    overflow: Overflow

    def conversation(self, model: Model) -> Conversation:
        """Begin a conversation as they say."""
        return model.conversation(self.system, overflow=self.overflow)


@click.command()
@click.argument("bundle", type=PATH)
@options.chatting
@options.controls
@options.loading
def chat(bundle: Path, **settings: Any) -> None:
    """Chat with the model in BUNDLE; /help lists the commands.

    Ctrl-C stops an answer, Ctrl-D ends the chat. Without a terminal every line of standard input is a message, its
    answer goes to standard output and everything else to standard error; the first error ends it.
    """
    choices = options.chosen(ChatChoices, settings)
    model = options.load(bundle, settings)
    talk(model, options.config(model, settings), choices)


def talk(model: Model, config: GenerationConfig, choices: ChatChoices) -> None:
    """Chat on standard input and output until the user ends it.

    Raises:
        InputError: a setting that makes no sense, or without a terminal any mistake.
    """
    model.stream([0], config)  # refused before anybody has typed anything
    conversation = choices.conversation(model)
    lines = Lines.standard()
    console = Console(highlight=False, force_terminal=None if lines.interactive else False)
    options.note_module(model, config)
    session = Session(model, conversation, config, View(console, choices.tint))
    if lines.interactive:
        for line in session.header:
            echo(line, err=True)
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
