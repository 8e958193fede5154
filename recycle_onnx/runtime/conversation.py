"""Conversations: messages to text, and caches that are kept from turn to turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack, cast

from tokenizers import Tokenizer

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.chat_template import ChatTemplate, Message, check_message
from recycle_onnx.runtime.config import GenerationConfig, Overrides
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.generation import Generation, Result
from recycle_onnx.runtime.settings import TO_THE_END
from recycle_onnx.runtime.snapshot_check import check_snapshot
from recycle_onnx.runtime.text import count, encode
from recycle_onnx.untrusted import parse_json

Overflow = Literal["error", "drop_oldest"]
OVERFLOWS: tuple[Overflow, ...] = ("error", "drop_oldest")
ADVICE = "rewind, start another conversation, or let overflow='drop_oldest' forget the oldest turns"
FORMAT = "recycle-onnx conversation 1"


class ConversationModel(Protocol):
    """The part of `Model` that a conversation needs.

    (`Model` makes conversations, and so cannot be imported here.)
    """

    bundle: Bundle
    tokenizer: Tokenizer
    generation_config: GenerationConfig

    def decoder(self, strategy: str) -> Decoder:
        """Make caches for one text."""
        ...

    def stream(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        decoder: Decoder | None = None,
        **overrides: Unpack[Overrides],
    ) -> Generation:
        """Continue a prompt, token by token."""
        ...


class ConversationOptions(TypedDict, total=False):
    """The options of `Conversation` as keywords."""

    messages: Iterable[Message]
    template: str | None
    template_variables: dict[str, Any] | None
    overflow: Overflow


class Conversation:
    """Messages, and the caches of what both halves have read of them.

    A turn's tokens are those of a fresh run on the whole text: caches save work, and change nothing. One thread at a
    time may use a conversation; `fork` gives another one its own.
    """

    def __init__(
        self,
        model: ConversationModel,
        system: str | None = None,
        *,
        messages: Iterable[Message] = (),
        template: str | None = None,
        template_variables: dict[str, Any] | None = None,
        overflow: Overflow = "error",
    ) -> None:
        """Begin one.

        Args:
            model: who answers.
            system: what stands before all turns.
            messages: turns that there were already.
            template: name of the bundle's chat template; None for its default one, or `plain` where it has none.
            template_variables: passed to the template, for instance `{"enable_thinking": False}`.
            overflow: what to do where the messages no longer fit the context: `error`, or `drop_oldest` turns (the
                system message stays) and read the rest again.

        Raises:
            InputError: no such template, jinja2 is missing, or a message without role or content.
        """
        # Checked here: a saved conversation from a stranger comes this way too.
        if overflow not in OVERFLOWS:
            raise InputError(f"overflow {overflow!r} is not known; expected one of: {', '.join(OVERFLOWS)}")
        self.model, self.overflow = model, overflow
        self.template_variables = _plain_values("template_variables", template_variables or {})
        self.template = ChatTemplate.find(model.bundle.folder, template, self.template_variables)
        # With the module's caches, since any later turn may have a strategy that needs them.
        self.decoder = model.decoder("auto")
        self._generation: Generation | None = None
        before = [] if system is None else [{"role": "system", "content": system}]
        self.messages = [*before, *_several(messages)]

    def __repr__(self) -> str:
        count = len(self._messages) + (self._generation is not None)
        messages = f"{count} message{'' if count == 1 else 's'}"
        read = f"{len(self.decoder.tokens.full)} tokens read"
        return f"<Conversation with {self.model.bundle.name!r}: {messages}, {read}, template {self.template.name!r}>"

    @property
    def messages(self) -> list[Message]:
        """All turns, the answer in progress as far as it is; to be set where the past should change."""
        answer = [] if self._generation is None else [{"role": "assistant", "content": self._generation.result.text}]
        return deepcopy(self._messages) + answer

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        changed = [_checked(message) for message in _several(messages)]
        with self.decoder.exclusive.use():
            self._replace(changed, None)

    def send(
        self,
        content: str,
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        **overrides: Unpack[Overrides],
    ) -> Generation:
        """Add a user's turn; give the answer as an iterator over tokens, with the controls of `model.stream`.

        What the answer has become when it ends, or is broken off, is the next message. One that was still going on is
        cancelled.

        Raises:
            InputError: the template refuses the messages, they do not fit the context, or a control out of range;
                the messages are then as they were.
            RecycleError: another thread is using the conversation.
        """
        config = self._config(config, overrides)
        with self.decoder.exclusive.use():
            messages = [*self.messages, _checked({"role": "user", "content": content})]
            return self._start(messages, config, progress)

    def ask(
        self,
        content: str,
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        **overrides: Unpack[Overrides],
    ) -> Result:
        """Add a user's turn and wait for the answer; else as `send`."""
        return self.send(content, config, progress=progress, **overrides).finish()

    def answer(
        self,
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        **overrides: Unpack[Overrides],
    ) -> Generation:
        """Answer the messages as they stand, without another turn of the user's; else as `send`.

        Raises:
            InputError: there is no message, or the last one is an answer; otherwise as for `send`.
        """
        config = self._config(config, overrides)
        with self.decoder.exclusive.use():
            messages = self.messages
            if not messages or messages[-1]["role"] == "assistant":
                there = "the last message is the assistant's" if messages else "there are no messages"
                raise InputError(f"{there}; expected one to answer, such as {{'role': 'user', 'content': '…'}}")
            return self._start(messages, config, progress)

    def count_tokens(self) -> int:
        """Count the tokens of all messages as the template writes them, with the beginning of an answer.

        Raises:
            InputError: the template refuses the messages.
        """
        text = self.template.render(self.messages)
        return len(encode(self.model.tokenizer, text, self.template.special_tokens))

    def rewind(self, turns: int = 1) -> None:
        """Take back the last turns, each a user's message and the answer.

        Raises:
            InputError: there are fewer.
        """
        starts = _turn_starts(self.messages)
        if not 1 <= turns <= len(starts):
            raise InputError(f"turns is {turns}; expected 1 to {len(starts)}, the turns there are")
        self.messages = self.messages[: starts[-turns]]

    def fork(self) -> Conversation:
        """Return an independent copy, caches included."""
        with self.decoder.exclusive.use():
            other = Conversation(
                self.model,
                messages=self.messages,
                template=self.template.name,
                template_variables=self.template_variables,
                overflow=self.overflow,
            )
            other.decoder.restore(self.decoder.snapshot())
        return other

    def save(self, path: str | PathLike[str]) -> None:
        """Write messages and caches to a file (safetensors) in one step.

        Raises:
            RecycleError: it cannot be written there.
        """
        with self.decoder.exclusive.use():
            about = {
                "format": FORMAT,
                "bundle": self.model.bundle.digest,
                "messages": json.dumps(self.messages),
                "template": self.template.name,
                "template_variables": json.dumps(self.template_variables),
                "overflow": self.overflow,
            }
            tensor_file.write(Path(path), self.decoder.snapshot(), about)

    @classmethod
    def load(cls, model: ConversationModel, path: str | PathLike[str]) -> Conversation:
        """Go on with a conversation that `save` wrote, as if it had never stopped.

        Raises:
            InputError: damaged, not a saved conversation, or one with another model.
        """
        arrays, about = tensor_file.read(Path(path))
        if about.get("format") != FORMAT:
            raise InputError(f"{path}: not a saved conversation (format {about.get('format')!r}; expected {FORMAT!r})")
        try:
            if about["bundle"] != model.bundle.digest:
                raise InputError(
                    f"{path}: saved with another model (bundle {about['bundle'][:12]}…, "
                    f"and {model.bundle.folder} is {model.bundle.digest[:12]}…); load it with that one"
                )
            conversation = cls(
                model,
                messages=parse_json(about["messages"]),
                template=about["template"],
                template_variables=parse_json(about["template_variables"]),
                overflow=cast(Overflow, about["overflow"]),
            )
            check_snapshot(arrays, conversation.decoder.full, conversation.decoder.recycler)
        except (ValueError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{path}: damaged, or not a saved conversation ({what})") from error
        conversation.decoder.restore(arrays)
        return conversation

    def _config(self, config: GenerationConfig | None, overrides: Overrides) -> GenerationConfig:
        """Return the settings of an answer, with what the template needs to end one."""
        chosen = (config or self.model.generation_config).updated(**overrides)
        return chosen.updated(stop=(*chosen.stop, *self.template.stops))

    def _start(self, messages: list[Message], config: GenerationConfig, progress: Progress) -> Generation:
        messages, prompt = self._fitting(messages, config.max_new_tokens)
        answer = self.model.stream(prompt, config, progress=progress, decoder=self.decoder)
        self._replace(messages, answer)
        return answer

    def _replace(self, messages: list[Message], answer: Generation | None) -> None:
        # It works in the caches that the next turn takes over.
        if self._generation is not None:
            self._generation.cancel()
        self._messages, self._generation = messages, answer

    def _encode(self, messages: list[Message]) -> list[int]:
        text = self.template.render(messages)
        context = self.model.bundle.manifest.context_length
        return encode(self.model.tokenizer, text, self.template.special_tokens, context)

    def _fitting(self, messages: list[Message], wanted: int) -> tuple[list[Message], list[int]]:
        """Return the messages that fit the context, and their tokens.

        Dropping makes room for the answer: for the `wanted` tokens, up to half the context; for a quarter where the
        answer may go on to the context's end.
        """
        context = self.model.bundle.manifest.context_length
        prompt = self._encode(messages)
        if self.overflow == "drop_oldest":
            most = context - (context // 4 if wanted == TO_THE_END else min(wanted, context // 2))
            while len(prompt) > most and len(starts := _turn_starts(messages)) > 1:
                messages = messages[: starts[0]] + messages[starts[1] :]
                prompt = self._encode(messages)
        if len(prompt) >= context:
            advice = "shorten the last message" if self.overflow == "drop_oldest" else ADVICE
            tokens = count(prompt, context)
            raise InputError(
                f"the conversation has {tokens}; the context of {context} leaves no room for an answer: {advice}"
            )
        return messages, prompt


def _turn_starts(messages: list[Message]) -> list[int]:
    """Return where each user's turn begins."""
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def _several(messages: Iterable[Message]) -> Iterable[Message]:
    """Return what may be a list of messages: a text or a number is none."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Iterable):
        raise InputError(f"the messages are {messages!r:.100}; expected a list of objects with role and content")
    return messages


def _checked(message: Message) -> Message:
    return _plain_values("a message", check_message(message))


def _plain_values(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Copy values down to the last one, so that what is saved with a conversation is its own."""
    try:
        return dict(json.loads(json.dumps(values)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is {values!r}; expected what JSON can hold ({error})") from error
