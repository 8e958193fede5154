"""The Python face: load a bundle, generate or stream text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.errors import InputError
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.config import GenerationConfig, Overrides, read_defaults
from recycle_onnx.runtime.conversation import Conversation
from recycle_onnx.runtime.decoding.calibration import MachineCalibration
from recycle_onnx.runtime.decoding.chooser import make_chooser
from recycle_onnx.runtime.decoding.decoder import CHUNK, Decoder
from recycle_onnx.runtime.decoding.equal_runs import EqualRuns
from recycle_onnx.runtime.decoding.run import Run
from recycle_onnx.runtime.decoding.strategies import NEEDING_MODULE, Plan
from recycle_onnx.runtime.generation import Generation, Lossless, Result
from recycle_onnx.runtime.ort.loaded import LoadedHalves
from recycle_onnx.runtime.ort.native import at_work
from recycle_onnx.runtime.ort.prepacked import open_prepacked
from recycle_onnx.runtime.ort.provider_table import CPU
from recycle_onnx.runtime.ort.providers import Place, Placement, options_of_module, place, register_library
from recycle_onnx.runtime.ort.sessions import open_original
from recycle_onnx.runtime.settings import STRATEGIES
from recycle_onnx.runtime.structured import Constraints
from recycle_onnx.runtime.text import count, encode
from recycle_onnx.tokenizer import load_tokenizer

Opener = Callable[[Bundle, Kind, Place, int | None], ort.InferenceSession]
"""Gives a session of one half: bundle, half, provider, threads."""


class RecycleModel:
    """A loaded bundle, to be shared by threads: every generation and every conversation has caches of its own.

    `generation_config` holds what applies where a generation says nothing else, read from generation_config.json.

    `with recycle_onnx.load(…) as model:` closes it at the end.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Place,
        threads: int | None,
        opener: Opener = open_original,
        progress: Progress = silent,
        recycler_provider: Place | None = None,
    ) -> None:
        """Open a session of each half; `provider` runs the full model, `recycler_provider` the module.

        The module's provider is by default the same.
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
        recycler, kinds = manifest.graphs.get("recycler"), manifest.kinds
        progress(0, len(kinds), "loading the full model")
        full = opener(bundle, "full", places[0], threads)
        progress(1, len(kinds), "loading the module" if recycler else "loaded")
        module = opener(bundle, "recycler", places[1], threads) if recycler else None
        progress(len(kinds), len(kinds), "loaded")
        draft = manifest.draft_vocabulary
        draft_ids = None if draft is None else np.array(draft, np.int64)
        self._halves = LoadedHalves((full, module), (manifest.graphs["full"], recycler), draft_ids)

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
        return self._equal_runs.known(lambda: self.decoder("full"))

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
        """Continue `prompt`, a text or token ids.

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
        generation = self.stream(prompt, config, progress=progress, **overrides)
        for _ in generation:
            pass
        return generation.result

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

    def decoder(self, strategy: str) -> Decoder:
        """Make fresh caches for one text; without the module's where `strategy` does not need them."""
        return self._decoder(module=strategy in ("auto", *NEEDING_MODULE))

    def _decoder(self, *, module: bool) -> Decoder:
        return self._halves.decoder(self.bundle.manifest.context_length, self.prefill_chunk, module=module)

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """Begin a conversation; the options are those of `Conversation`."""
        return Conversation(self, system, **options)

    def load_conversation(self, path: str | PathLike[str]) -> Conversation:
        """Go on with a conversation that `Conversation.save` wrote."""
        return Conversation.load(self, path)

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a text, with the special tokens that the tokenizer adds to a prompt.

        Raises:
            InputError: it has half a character.
        """
        return encode(self.tokenizer, prompt)

    def _start(
        self, prompt: str | Sequence[int], config: GenerationConfig, progress: Progress, decoder: Decoder | None
    ) -> Generation:
        self._halves.check_process()
        strategy = self._strategy(config.strategy)
        plan = Plan.make(strategy, config.chain, config.min_confidence, self.calibration, self.module_trained)
        ids = self.prompt_ids(prompt)
        room = self.bundle.manifest.context_length - len(ids)
        vocab_size = self._halves.specs[0].vocab_size
        config.check_vocabulary(vocab_size)
        limit = room if config.max_new_tokens is None else min(config.max_new_tokens, room)
        stop_ids = self.stop_ids if config.stop_ids is None else frozenset(config.stop_ids)
        constraint = None if config.constraint is None else self._constraints.prepare(config.constraint, stop_ids)
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
        )

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
        context = self.bundle.manifest.context_length
        ids = encode(self.tokenizer, prompt, context=context) if isinstance(prompt, str) else _as_ids(prompt)
        if len(prompt) == 0:
            raise InputError("the prompt is empty; expected some text to continue")
        vocab_size = self._halves.specs[0].vocab_size
        if not ids:
            raise InputError("the prompt has no tokens; expected some text to continue")
        if bad := [token for token in ids if not 0 <= token < vocab_size]:
            raise InputError(f"token id {bad[0]} is outside the vocabulary of {vocab_size}")
        if len(ids) >= context:
            raise InputError(f"the prompt has {count(ids, context)}; the context of {context} leaves no room for more")
        return ids

    def _lossless(self, strategy: str) -> Lossless:
        if strategy == "full":
            return "exact"
        if strategy == "alternate":
            return "no"
        if self.provider == CPU and self.bundle.manifest.precision == "fp32":
            return "exact"
        return "exact" if self.equal_runs else "within_rounding"  # kernels may go by the number of rows


def _as_ids(prompt: Sequence[int]) -> list[int]:
    """Convert whatever holds integers, an array for instance, to a list of them."""
    try:
        if isinstance(prompt, bytes | bytearray):
            raise TypeError
        return [index(token) for token in prompt]
    except TypeError as error:
        raise InputError(f"the prompt is {prompt!r:.100}; expected a text, or token ids") from error


def load(
    path: str | PathLike[str],
    *,
    provider: str = "cpu",
    recycler_provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    recycler_provider_options: Mapping[str, str] | None = None,
    provider_libraries: Mapping[str, str | PathLike[str]] | None = None,
    threads: int | None = None,
    verify: bool = False,
    prepacked: bool = False,
    progress: Progress = silent,
) -> RecycleModel:
    """Load a bundle.

    Args:
        path: the folder that `recycle-onnx export` wrote.
        provider: where to run: `cpu`, another one of `docs/providers.md`, or `auto` for the best that is here.
        recycler_provider: where the module runs, if not there too.
        provider_options: what the provider takes, by ONNX Runtime's names (`{"device_id": "1"}`).
        recycler_provider_options: the same for the module's provider, if it has one of its own.
        provider_libraries: files of plug-in providers, by the name to call each.
        threads: threads of each session, None for one a physical core.
        verify: hash the weights again, even if this very file was checked before.
        prepacked: keep weights in the user's cache, laid out for this processor (twice the bundle's size), and map
            them: the memory they take can be shared and taken back. Without it every model has a private copy.
        progress: called with what is done, of how much, and what comes now: bytes of files checked, then graphs loaded.

    Raises:
        InputError: not a bundle, an altered file, a future format, a provider that is unknown or not here, cannot run
            the bundle or does not know an option.
        RecycleError: ONNX Runtime cannot load a graph, or there is too little memory.
    """
    for name, file in (provider_libraries or {}).items():
        register_library(name, file)
    opener = open_prepacked if prepacked else open_original
    bundle = Bundle.open(Path(path), verify=verify, progress=progress)
    full = place(provider, provider_options or {}, bundle.manifest)
    own = options_of_module(recycler_provider, recycler_provider_options)
    other = None if recycler_provider is None else place(recycler_provider, own, bundle.manifest)
    with at_work():
        return RecycleModel(bundle, full, threads, opener, progress, other)
