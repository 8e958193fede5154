"""A conversation in the terminal: what its commands do, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recycle_onnx.cli.chat_view import View
from recycle_onnx.cli.generate import summary
from recycle_onnx.cli.report import echo
from recycle_onnx.errors import InputError
from recycle_onnx.kinds import Biases
from recycle_onnx.runtime.settings import ALIASES, SETTINGS, hint

if TYPE_CHECKING:
    from recycle_onnx.runtime.config import GenerationConfig
    from recycle_onnx.runtime.conversation import Conversation
    from recycle_onnx.runtime.generation import Generation, Result
    from recycle_onnx.runtime.model import Model

COMMANDS = {
    "/clear": "forget all turns but the system message",
    "/undo": "take back the last message and its answer",
    "/retry": "answer the last message again, with another seed",
    "/system [TEXT]": "show or change what the model is told before all turns",
    "/set [NAME VALUE]": "show or change a setting, such as temperature 0.8",
    "/strategy [NAME]": "show or change how tokens are made",
    "/tint": "show recycled tokens green, or markdown again",
    "/stats": "what the last answer took",
    "/save FILE": "write the conversation, caches included",
    "/load FILE": "go on with a saved one",
    "/help": "this",
    "/quit": "end, as Ctrl-D does",
}
OTHER_NAMES = {"/reset": "/clear"}
"""What a command was called before."""
HINTS = f'''{chr(10).join(f"{name:<19}{text}" for name, text in COMMANDS.items())}
"""                begins and ends a message of several lines
//                 begins a message with a /
Ctrl-C             stops an answer'''
LONGEST_QUOTE = 60
"""Characters of a message that are shown to say which one it was."""


class Session:
    """A conversation, with the settings that commands change."""

    def __init__(self, model: Model, conversation: Conversation, config: GenerationConfig, view: View) -> None:
        self.model, self.conversation, self.config, self.view = model, conversation, config, view
        self.ended = False
        self._last: Result | None = None
        self._tries = 0
        """How often the last message was answered before: each time with another seed."""

    @property
    def strategy(self) -> str:
        """The strategy that answers."""
        return self.config.strategy or self.model.bundle.manifest.default_strategy

    @property
    def header(self) -> list[str]:
        """What the model is, and how to begin."""
        model = self.model
        about = f"{model.bundle.manifest.halves}, context of {model.context_length} tokens, strategy {self.strategy}"
        template = f"turns as in template {self.conversation.template.name!r}; /help lists the commands"
        return [f"{model.name}: {about}", template]

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a message to answer."""
        if line.startswith("/") and not line.startswith("//"):
            self._command(*line.split(maxsplit=1))
        elif line.strip():
            message = line[1:] if line.startswith("//") else line
            self._tries = 0
            self._answer(lambda answer: self.conversation.send(message, self.config, progress=answer.reading))

    def _answer(self, start: Callable[[Any], Generation]) -> None:
        with self.view.answer() as answer:
            generation = start(answer)
            answer.show(generation)
        self._last = generation.result
        if self._last.finish_reason == "length":
            tokens = len(self._last.tokens)
            echo(f"(cut off after {tokens} tokens; /set max_new_tokens -1 lets answers go on)", err=True)

    def _command(self, name: str, argument: str = "") -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/clear": self._clear,
            "/undo": self._undo,
            "/retry": self._retry,
            "/system": self._change_system,
            "/set": self._set,
            "/strategy": self._change_strategy,
            "/tint": self._tint,
            "/stats": self._stats,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: echo(HINTS, err=True),
            "/quit": self._quit,
        }
        name = OTHER_NAMES.get(name, name)
        if name not in commands:
            raise InputError(
                f"no command {name}; expected one of: {', '.join(commands)} (// begins a message with a /)"
            )
        commands[name](argument.strip())

    @property
    def _system(self) -> list[dict[str, Any]]:
        return [message for message in self.conversation.messages if message["role"] == "system"]

    def _clear(self, _: str) -> None:
        self.conversation.messages = self._system
        self._last = None
        echo(f"all turns are forgotten{', but the system message' if self._system else ''}", err=True)

    def _undo(self, _: str) -> None:
        message = self._last_message()
        self.conversation.rewind()
        self._last = None
        echo(f"taken back: {_quoted(message)}", err=True)

    def _retry(self, _: str) -> None:
        message = self._last_message()
        self._tries += 1
        config = self.config.updated(seed=self.config.seed + self._tries)
        echo(f"again: {_quoted(message)}", err=True)
        if not config.temperature:
            echo("(greedy: the same answer again; /set temperature 0.8 makes others)", err=True)
        while self.conversation.messages[-1]["role"] != "user":
            self.conversation.messages = self.conversation.messages[:-1]
        self._answer(lambda answer: self.conversation.answer(config, progress=answer.reading))

    def _last_message(self) -> str:
        messages = [message for message in self.conversation.messages if message["role"] == "user"]
        if not messages:
            raise InputError("no message yet; send one first")
        return str(messages[-1]["content"])

    def _change_system(self, text: str) -> None:
        if text:
            others = [message for message in self.conversation.messages if message["role"] != "system"]
            self.conversation.messages = [{"role": "system", "content": text}, *others]
        told = [str(message["content"]) for message in self._system]
        echo(f"system message: {' '.join(told) or 'none; /system TEXT sets one'}", err=True)

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        name = name.replace("-", "_")
        name = ALIASES.get(name, name)
        if name and name not in SETTINGS:
            raise InputError(f"setting {name!r} is not known; {hint(name, list(SETTINGS))}")
        if value:
            self._change(**{name: _value(name, value.strip())})
        for shown in (name,) if name else SETTINGS:
            current = getattr(self.config, shown)
            unset = SETTINGS[shown].unset if current is None else ""
            echo(f"{shown}: {unset or _shown(current)}", err=True)

    def _change_strategy(self, name: str) -> None:
        model = self.model
        if name and name not in model.strategies:
            raise InputError(f"strategy {name!r} is not known; expected one of: {', '.join(model.strategies)}")
        if name:
            self._change(strategy=name)
        echo(f"strategy: {self.strategy}", err=True)

    def _change(self, **settings: Any) -> None:
        config = self.config.updated(**settings)
        self.model.stream([0], config)  # a chain, for instance, may not suit the strategy
        self.config = config

    def _tint(self, _: str) -> None:
        self.view.tint = not self.view.tint
        echo(f"recycled tokens are {'green' if self.view.tint else 'not shown'}", err=True)

    def _stats(self, _: str) -> None:
        if self._last is None:
            raise InputError("no answer yet; send a message first")
        stats, context = self._last.stats, self.model.context_length
        used = stats.prompt_tokens + stats.new_tokens
        for line in summary(self._last):
            echo(line, err=True)
        echo(
            f"{used} of {context} tokens of the context; {stats.reused_tokens} of {stats.prompt_tokens} prompt tokens "
            "were in the caches",
            err=True,
        )

    def _save(self, path: str) -> None:
        file = _file(path, "/save")
        self.conversation.save(file)
        megabytes = file.stat().st_size / 1e6
        echo(f"saved {self._count} and what was read of them: {file} ({megabytes:.1f} MB)", err=True)

    def _load(self, path: str) -> None:
        file = _file(path, "/load")
        overflow = self.conversation.overflow  # what was asked for on the command line
        self.conversation = self.model.load_conversation(file)
        self.conversation.overflow = overflow
        self._last = None
        echo(f"loaded {self._count}: {file}", err=True)

    @property
    def _count(self) -> str:
        count = len(self.conversation.messages)
        return f"{count} message{'' if count == 1 else 's'}"

    def _quit(self, _: str) -> None:
        self.ended = True


def _value(name: str, text: str) -> Any:
    """Read a setting's value: JSON, such as a number or a list, and otherwise the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    kind = SETTINGS[name].kind
    return kind.from_json(name, value) if isinstance(kind, Biases) else value


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE - 1]}…"


def _file(path: str, command: str) -> Path:
    if not path:
        raise InputError(f"{command} needs the name of a file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from error
