"""The Python face of a loaded bundle: generate or stream text, converse, embed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Self, Unpack

import numpy as np

from recycle_onnx.bundle import Bundle
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.chat_template import Message
from recycle_onnx.runtime.config import GenerationConfig, Overrides, read_defaults
from recycle_onnx.runtime.conversation import Conversation, ConversationOptions
from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from recycle_onnx.runtime.decoding.chooser import make_chooser
from recycle_onnx.runtime.decoding.decoder import CHUNK, Decoder
from recycle_onnx.runtime.decoding.equal_rows import EqualRows
from recycle_onnx.runtime.decoding.equal_runs import EqualRuns
from recycle_onnx.runtime.decoding.fewer_threads import FewerThreads
from recycle_onnx.runtime.decoding.half import Floats
from recycle_onnx.runtime.decoding.run import Run
from recycle_onnx.runtime.decoding.strategies import NEEDING_MODULE, Plan
from recycle_onnx.runtime.embedding import Texts, embed
from recycle_onnx.runtime.generation import Generation, Lossless, Result
from recycle_onnx.runtime.ort.loaded import LoadedHalves
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.providers import Place, Placement
from recycle_onnx.runtime.ort.sessions import Opener, open_original
from recycle_onnx.runtime.raw_text import RawTextNotice
from recycle_onnx.runtime.settings import STRATEGIES, TO_THE_END
from recycle_onnx.runtime.structured import Constraint, Constraints, Grammar
from recycle_onnx.runtime.text import as_ids, count, encode
from recycle_onnx.tokenizer import load_tokenizer


class Model:
    """A loaded bundle, to be shared by threads: every generation and every conversation has caches of its own.

    `generation_config` holds what applies where a generation says nothing else, read from generation_config.json.
    `tokenizer` is its `tokenizers.Tokenizer`.

    `with recycle_onnx.load(…) as model:` closes it at the end. `RecycleModel` is an older name of the
    class.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Place,
        threads: int | None,
        opener: Opener = open_original,
        progress: Progress = silent,
        recycler_provider: Place | None = None,
        *,
        fixed_threads: bool = True,
    ) -> None:
        """Open a session of each half; `provider` runs the full model, `recycler_provider` the module.

        The module's provider is by default the same. Without `fixed_threads` steps may run on fewer, as for `load`.
        """
        manifest = bundle.manifest
        places = Placement.of(provider), Placement.of(provider if recycler_provider is None else recycler_provider)
        self._providers = tuple(place.provider.name for place in places)
        self.bundle = bundle
        self.tokenizer = load_tokenizer(bundle.folder)
        self.generation_config = read_defaults(bundle.folder / "generation_config.json")
        self.prefill_chunk = CHUNK
        self.calibration = MachineCalibration.find(bundle, self.providers, threads)
        self._equal_runs = EqualRuns(bundle, self.provider, threads)
        self._constraints = Constraints(self.tokenizer, manifest.graphs["full"].vocab_size)
        self._raw_text = RawTextNotice(bundle.folder, self.tokenizer)
        recycler, kinds = manifest.graphs.get("recycler"), manifest.kinds
        progress(0, len(kinds), "loading the full model")
        full = opener(bundle, "full", places[0], threads)
        progress(1, len(kinds), "loading the module" if recycler else "loaded")
        module = opener(bundle, "recycler", places[1], threads) if recycler else None
        progress(len(kinds), len(kinds), "loaded")
        draft_ids = None if (draft := manifest.draft_vocabulary) is None else np.array(draft, np.int64)
        fewer = None
        if not fixed_threads and self.providers == CPU and FewerThreads.possible((full, module)):
            fewer = FewerThreads(bundle, (full, module), opener)
        rows = EqualRows(bundle, self.provider, threads, self._equal_runs)
        self._halves = LoadedHalves((full, module), (manifest.graphs["full"], recycler), draft_ids, fewer, rows)

    def __repr__(self) -> str:
        about = f"{self.bundle.manifest.halves}, context of {self.context_length} tokens, on {self.providers}"
        return f"<Model {self.name!r}: {about}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and caches; generations and conversations that are still about raise from then on.

        Waits for steps in progress, in whatever thread. What glibc's allocator keeps for later goes back to the system.

        Raises:
            RecycleError: called from within a step, by a callback or a processor.
        """
        self._halves.close()

    @property
    def name(self) -> str:
        """The name of the bundle's folder, by which the server calls it too."""
        return self.bundle.name

    @property
    def context_length(self) -> int:
        """The most tokens that a text may have, prompt included."""
        return self.bundle.manifest.context_length

    @property
    def provider(self) -> str:
        """What runs the full model; under `auto` what was chosen."""
        return self._providers[0]

    @property
    def recycler_provider(self) -> str:
        """What runs the module, if there is one."""
        return self._providers[1]

    @property
    def providers(self) -> str:
        """Both in one word, `cuda+cpu`, or `cpu` where they are the same."""
        return "+".join(dict.fromkeys(self._providers))

    @property
    def equal_runs(self) -> bool:
        """Whether a run on several tokens gives here, to the bit, what runs on one give: so `verify` is `exact`.

        Of int8 and int4 on the CPU. It is tried when it is first asked for, which the first generation that verifies
        does, in the time of some 40 steps; the user's cache keeps the answer.
        """
        self._halves.check_process()
        return self._equal_runs.known(lambda: self._halves.trial_decoder(self.context_length))

    @property
    def strategies(self) -> tuple[str, ...]:
        """Strategies that this bundle can run; without a module only `full`."""
        return self.bundle.manifest.strategies

    @property
    def module_trained(self) -> bool:
        """Whether there is a module that was trained; `auto` leaves any other one alone."""
        return self.bundle.manifest.module_trained

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a text unless a generation says otherwise."""
        return frozenset(self.generation_config.stop_ids or ())

    @stop_ids.setter
    def stop_ids(self, ids: Iterable[int]) -> None:
        self.generation_config = self.generation_config.updated(stop_ids=tuple(ids))

    def generate(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        **overrides: Unpack[Overrides],
    ) -> Result:
        """Continue `prompt`, a text or token ids; `chat` answers messages.

        A chat model says once, as a warning of `logging`, that it continues the text as it stands.

        Args:
            prompt: text, encoded with the special tokens the tokenizer adds; or token ids, taken as they are.
            config: how; None for `generation_config`, the bundle's own.
            progress: called after each chunk of the prompt with the tokens read, and of how many.
            overrides: settings that replace those of `config`, by the names of `GenerationConfig`'s fields.

        Raises:
            InputError: an empty prompt, one longer than the context, a setting out of range, or a constraint that
                cannot be followed.
            RecycleError: the logits processors leave nothing to choose.
        """
        return self.stream(prompt, config, progress=progress, **overrides).finish()

    def stream(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        progress: Progress = silent,
        decoder: Decoder | None = None,
        **overrides: Unpack[Overrides],
    ) -> Generation:
        """Return an iterator over tokens (`text`, `id`, `recycled`, …) as they become final; else as `generate`.

        Its `result` holds what `generate` would give. A `decoder` that read another text before (`decoder("auto")`
        makes one) reads only what is new of this one. From the first token on it belongs to this generation: one that
        used it before cannot go on, and raises `OvertakenError`.

        Raises:
            InputError: as `generate`, or a `decoder` of another model, or one without the module that the strategy
                needs.
        """
        return self._start(prompt, (config or self.generation_config).updated(**overrides), progress, decoder)

    def chat(
        self,
        messages: str | Iterable[Message],
        config: GenerationConfig | None = None,
        *,
        template: str | None = None,
        template_variables: dict[str, Any] | None = None,
        progress: Progress = silent,
        **overrides: Unpack[Overrides],
    ) -> Result:
        """Answer `messages` by the model's chat template; `conversation` keeps its caches for the next turn.

        Args:
            messages: all turns, each with `role` and `content`; a text stands for one message of the user's.
            config: how, as for `generate`.
            template: as for `Conversation`.
            template_variables: as for `Conversation`, for instance `{"enable_thinking": False}`.
            progress: as for `generate`.
            overrides: settings that replace those of `config`.

        Raises:
            InputError: no message, the last one is an answer, they do not fit the context, the template refuses them,
                or a setting is out of range.
            RecycleError: as for `generate`.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        chat = self.conversation(messages=turns, template=template, template_variables=template_variables)
        return chat.answer(config, progress=progress, **overrides).finish()

    def decoder(self, strategy: str) -> Decoder:
        """Make fresh caches for one text; without the module's where `strategy` does not need them."""
        return self._decoder(module=strategy in ("auto", *NEEDING_MODULE))

    def _decoder(self, *, module: bool) -> Decoder:
        return self._halves.decoder(self.context_length, self.prefill_chunk, module=module)

    def conversation(self, system: str | None = None, **options: Unpack[ConversationOptions]) -> Conversation:
        """Begin a conversation; the options are those of `Conversation`."""
        return Conversation(self, system, **options)

    def load_conversation(self, path: str | PathLike[str]) -> Conversation:
        """Go on with a conversation that `Conversation.save` wrote."""
        return Conversation.load(self, path)

    def check_constraint(self, constraint: Constraint, config: GenerationConfig | None = None) -> None:
        """Refuse a constraint that no text of this model can follow; what compiles it is kept.

        Raises:
            InputError: as for `generate`.
        """
        self._constraints.prepare(constraint, self._stop_ids(config or self.generation_config))

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a text, with the special tokens that the tokenizer adds to a prompt.

        Raises:
            InputError: it is no text, or has half a character.
        """
        if not isinstance(prompt, str):
            raise InputError(f"the text is {prompt!r:.100}; expected a string")
        return encode(self.tokenizer, prompt)

    def embed(
        self,
        texts: Texts,
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        progress: Progress = silent,
    ) -> Floats:
        """Return the vector float32 [D] of a text, or the vectors [N, D] of a list of texts, each of length 1.

        Args:
            texts: a text or its token ids, or a list of either.
            pooling: `mean` of the hidden states, or that of the `last` token; None for what the base was trained for,
                and the mean where its checkpoint does not say.
            dimensions: keep the first D values only, for bases trained for that; None for all.
            progress: called after each text with the number of those read, and of how many.

        Raises:
            InputError: an empty text, one longer than the context, or `pooling` or `dimensions` that make no sense.
        """
        return embed(self, texts, pooling, dimensions, progress)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, without special tokens unless they are asked for.

        Raises:
            InputError: they are no token ids, or outside the vocabulary.
        """
        return str(
            self.tokenizer.decode(
                self._known(as_ids(ids, "the ids are", "token ids")), skip_special_tokens=skip_special_tokens
            )
        )

    def count_tokens(self, prompt: str | Iterable[Message]) -> int:
        """Count the tokens that a text has as a prompt, or that messages have by the model's chat template.

        Raises:
            InputError: half a character, or messages that the template refuses.
        """
        if isinstance(prompt, str):
            return len(self.encode(prompt))
        return self.conversation(messages=prompt).count_tokens()

    def _start(
        self, prompt: str | Sequence[int], config: GenerationConfig, progress: Progress, decoder: Decoder | None
    ) -> Generation:
        self._halves.check_process()
        strategy = self._strategy(config.strategy)
        plan = Plan.make(strategy, config.chain, config.min_confidence, self.calibration, self.module_trained)
        ids = self.prompt_ids(prompt)
        room = self.context_length - len(ids)
        vocab_size = self._halves.specs[0].vocab_size
        config.check_vocabulary(vocab_size)
        limit = room if config.max_new_tokens == TO_THE_END else min(config.max_new_tokens, room)
        stop_ids = self._stop_ids(config)
        constraint = None if config.constraint is None else self._constraints.prepare(config.constraint, stop_ids)
        if isinstance(prompt, str):
            self._raw_text.consider(prompt)
        caches = self._checked(decoder, plan) if decoder else self._decoder(module=plan.needs_module)
        lossless = self._lossless(plan.strategy)
        chooser = make_chooser(config, ids, limit, vocab_size, stop_ids, constraint)
        return Generation(
            Run(caches, plan, ids, chooser, limit, progress=progress),
            self.tokenizer,
            lossless,
            stop_ids=stop_ids,
            stop_strings=tuple(config.stop),
            logprobs=config.logprobs,
            shown_ids=config.constraint.shown if isinstance(config.constraint, Grammar) else frozenset(),
        )

    def _stop_ids(self, config: GenerationConfig) -> frozenset[int]:
        return self.stop_ids if config.stop_ids is None else frozenset(config.stop_ids)

    def _checked(self, decoder: Decoder, plan: Plan) -> Decoder:
        """Return the caches to use again, once they are known to be this model's and to suit the strategy."""
        self._halves.check_own(decoder)
        if decoder.recycler is None and plan.strategy in NEEDING_MODULE:
            raise InputError(
                f"strategy {plan.strategy!r} needs the module's caches, and this decoder has none; "
                f"make one with decoder({plan.strategy!r})"
            )
        return decoder

    def _strategy(self, strategy: str | None) -> str:
        name = strategy or self.bundle.manifest.default_strategy
        if name in self.strategies:
            return name
        if name in STRATEGIES:
            raise InputError(
                f"strategy {name!r} needs a recyclable module, and {self.bundle.folder} has none; use 'full'"
            )
        raise InputError(f"strategy {name!r} is not known; expected one of: {', '.join(self.strategies)}")

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Give the token ids of a prompt that can be continued, a text or token ids.

        Raises:
            InputError: empty, ids outside the vocabulary, or longer than the context less the one token to come.
        """
        context = self.context_length
        ids = encode(self.tokenizer, prompt, context=context) if isinstance(prompt, str) else as_ids(prompt)
        if len(prompt) == 0:
            raise InputError("the prompt is empty; expected some text to continue")
        if not ids:
            raise InputError("the prompt has no tokens; expected some text to continue")
        if len(self._known(ids)) >= context:
            raise InputError(f"the prompt has {count(ids, context)}; the context of {context} leaves no room for more")
        return ids

    def _known(self, ids: list[int]) -> list[int]:
        vocab_size = self._halves.specs[0].vocab_size
        if bad := [token for token in ids if not 0 <= token < vocab_size]:
            raise InputError(f"token id {bad[0]} is outside the vocabulary of {vocab_size}")
        return ids

    def _lossless(self, strategy: str) -> Lossless:
        if strategy == "full":
            return "exact"
        if strategy == "alternate":
            return "no"
        manifest = self.bundle.manifest
        if self.provider == CPU and manifest.precision == "fp32" and manifest.graphs["full"].cache_type is None:
            return "exact"
        return "exact" if self.equal_runs else "within_rounding"  # kernels may go by the number of rows


RecycleModel = Model
"""The name that the class had before."""
