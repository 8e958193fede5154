"""The Python face: load a bundle, generate or stream text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Unpack

import numpy as np
import onnxruntime as ort

from recycle_onnx.bundle import Bundle
from recycle_onnx.contract import Kind
from recycle_onnx.errors import InputError
from recycle_onnx.runtime.calibration import Calibration
from recycle_onnx.runtime.config import GenerationConfig, Overrides, read_defaults
from recycle_onnx.runtime.decoder import CHUNK, Decoder
from recycle_onnx.runtime.generation import Generation, Lossless, Result
from recycle_onnx.runtime.prepacked import open_prepacked
from recycle_onnx.runtime.processors import make_chooser
from recycle_onnx.runtime.sessions import open_original
from recycle_onnx.runtime.strategies import NAMES, Plan
from recycle_onnx.runtime.structured import Constraints
from recycle_onnx.tokenizer import load_tokenizer

Opener = Callable[[Bundle, Kind, str, int | None], ort.InferenceSession]
"""Gives a session of one half: bundle, half, provider, threads."""


class RecycleModel:
    """A loaded bundle. Every generation has caches of its own.

    `generation_config` holds what applies where a generation says nothing else, read from generation_config.json.
    """

    def __init__(self, bundle: Bundle, provider: str, threads: int | None, opener: Opener = open_original) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.tokenizer = load_tokenizer(bundle.folder)
        self.generation_config = read_defaults(bundle.folder / "generation_config.json")
        self.prefill_chunk = CHUNK
        self.calibration = Calibration.find(bundle, provider, threads)
        draft = manifest.draft_vocabulary
        self._draft_ids = None if draft is None else np.array(draft, np.int64)
        self._specs = (manifest.graphs["full"], manifest.graphs.get("recycler"))
        self._constraints = Constraints(self.tokenizer, self._specs[0].vocab_size)
        self._sessions = (
            opener(bundle, "full", provider, threads),
            opener(bundle, "recycler", provider, threads) if self._specs[1] else None,
        )

    @property
    def strategies(self) -> tuple[str, ...]:
        """Strategies that this bundle can run; without a module only `full`."""
        return self.bundle.manifest.strategies

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a text unless a generation says otherwise."""
        return frozenset(self.generation_config.stop_ids or ())

    @stop_ids.setter
    def stop_ids(self, ids: Iterable[int]) -> None:
        self.generation_config = self.generation_config.updated(stop_ids=tuple(ids))

    def generate(
        self, prompt: str | Sequence[int], config: GenerationConfig | None = None, **overrides: Unpack[Overrides]
    ) -> Result:
        """Continue `prompt`, a text or token ids.

        Args:
            prompt: text, encoded with the special tokens the tokenizer adds; or token ids, taken as they are.
            config: how; None for `generation_config`, the bundle's own.
            overrides: settings that replace those of `config`, by the names of `GenerationConfig`'s fields.

        Raises:
            InputError: an empty prompt, one longer than the context, a setting out of range, or a constraint that
                cannot be followed.
            RecycleError: the logits processors leave nothing to choose.
        """
        generation = self.stream(prompt, config, **overrides)
        for _ in generation:
            pass
        return generation.result

    def stream(
        self, prompt: str | Sequence[int], config: GenerationConfig | None = None, **overrides: Unpack[Overrides]
    ) -> Generation:
        """Like `generate`, but an iterator over tokens (`text`, `id`, `recycled`, …) as they become final.

        Its `result` holds what `generate` would give.
        """
        return self._start(prompt, (config or self.generation_config).updated(**overrides))

    def decoder(self, strategy: str) -> Decoder:
        """Fresh caches for one text; without the module's where `strategy` does not need them."""
        needed = strategy in ("auto", "alternate", "verify")
        sessions = (self._sessions[0], self._sessions[1] if needed else None)
        specs = (self._specs[0], self._specs[1] if needed else None)
        return Decoder(sessions, specs, self.bundle.manifest.context_length, self.prefill_chunk, self._draft_ids)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds to a prompt."""
        return list(self.tokenizer.encode(prompt).ids)

    def _start(self, prompt: str | Sequence[int], config: GenerationConfig) -> Generation:
        plan = Plan.make(self._strategy(config.strategy), config.chain, config.min_confidence, self.calibration)
        ids = self._prompt_ids(prompt)
        room = self.bundle.manifest.context_length - len(ids)
        if room < 1:
            raise InputError(
                f"the prompt has {len(ids)} tokens; the context of {len(ids) + room} leaves no room for more"
            )
        vocab_size = self._specs[0].vocab_size
        config.check_vocabulary(vocab_size)
        limit = room if config.max_new_tokens is None else min(config.max_new_tokens, room)
        stop_ids = self.stop_ids if config.stop_ids is None else frozenset(config.stop_ids)
        constraint = None if config.constraint is None else self._constraints.prepare(config.constraint, stop_ids)
        return Generation(
            decoder=self.decoder(plan.strategy),
            tokenizer=self.tokenizer,
            prompt=ids,
            plan=plan,
            lossless=self._lossless(plan.strategy),
            sampling=make_chooser(config, ids, limit, vocab_size, stop_ids, constraint),
            limit=limit,
            stop_ids=stop_ids,
            stop_strings=tuple(config.stop),
            logprobs=config.logprobs,
        )

    def _strategy(self, strategy: str | None) -> str:
        name = strategy or self.bundle.manifest.default_strategy
        if name in self.strategies:
            return name
        if name in NAMES:
            raise InputError(
                f"strategy {name!r} needs a recyclable module, and {self.bundle.folder} has none; use 'full'"
            )
        raise InputError(f"strategy {name!r} is not known; expected one of: {', '.join(self.strategies)}")

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if len(prompt) == 0:
            raise InputError("the prompt is empty; expected some text to continue")
        ids = self.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        vocab_size = self._specs[0].vocab_size
        if not ids:
            raise InputError("the prompt has no tokens; expected some text to continue")
        if bad := [token for token in ids if not 0 <= token < vocab_size]:
            raise InputError(f"token id {bad[0]} is outside the vocabulary of {vocab_size}")
        return ids

    def _lossless(self, strategy: str) -> Lossless:
        if strategy == "full":
            return "exact"
        if strategy == "alternate":
            return "no"
        return "exact" if self.bundle.manifest.precision == "fp32" else "within_rounding"


def load(
    path: str | PathLike[str],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    verify: bool = False,
    prepacked: bool = False,
) -> RecycleModel:
    """Load a bundle.

    Args:
        path: the folder that `recycle-onnx export` wrote.
        provider: where to run; `cpu`.
        threads: threads of each session, None for one a physical core.
        verify: hash the weights again, even if this very file was checked before.
        prepacked: keep weights in the user's cache, laid out for this processor (twice the bundle's size), and map
            them: the memory they take can be shared and taken back. Without it every model has a private copy.

    Raises:
        InputError: not a bundle, an altered file, a future format, an unknown provider.
        RecycleError: ONNX Runtime cannot load a graph.
    """
    opener = open_prepacked if prepacked else open_original
    return RecycleModel(Bundle.open(Path(path), verify=verify), provider, threads, opener)
