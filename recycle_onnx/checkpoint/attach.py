"""Give a base an untrained module, initialised from the base's own last layers or at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recycle_onnx.checkpoint.assemble import module_folder, reference_from
from recycle_onnx.checkpoint.base import BaseConfig
from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.draft_vocabulary import DraftFile, DraftVocabulary
from recycle_onnx.checkpoint.folder import Checkpoint
from recycle_onnx.checkpoint.recycler import EMBEDDING_FIRST, RecyclerConfig
from recycle_onnx.contract import FINAL_POST
from recycle_onnx.errors import InputError
from recycle_onnx.files import write_json
from recycle_onnx.safetensors_file import write_arrays

PROJECTION_NOISE = 0.02
"""Deviation of the noise that is added to the averaging projection."""

Init = Literal["base", "random"]
Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class NewModule:
    """The module to make: its size, its conventions (`RecyclerConfig` explains them) and where it starts from.

    Args:
        num_layers: its decoder layers.
        init: `base` starts from the base's last layers, `random` from nothing.
        tap: the hidden states of the base that it reads.
        concat: the order of its inputs before its projection.
        recycle: the state that a chain goes on from.
        window: positions that its layers look back, None for those of the base's layers.
        qk_norm: whether its layers normalise queries and keys.
        draft_vocabulary: the only tokens that it knows.
        seed: of what is random.
    """

    num_layers: int = 1
    init: Init = "base"
    tap: tuple[str, ...] = (FINAL_POST,)
    concat: tuple[str, ...] = EMBEDDING_FIRST
    recycle: str = "post_norm"
    window: int | None = None
    qk_norm: bool = False
    draft_vocabulary: DraftVocabulary | None = None
    seed: int = 0


def attach(
    base: Path, out: Path, module: NewModule | None = None, *, reference: bool = False, force: bool = False
) -> RecyclerConfig:
    """Write `out`: the base with an untrained module, of one layer where nothing else is said.

    The base is copied; with `reference` it stays where it is and is found by path and digest. Where `out` is the
    base itself, only `recycler/` is added.

    Raises:
        InputError: `base` is not a supported checkpoint, has fewer layers or not these taps, a convention or draft
            vocabulary that is not possible, or `out` exists (unless `force`).
    """
    module = module or NewModule()
    with Checkpoint.open(base, base_only=True) as checkpoint:
        config, draft_ids = _config(module, checkpoint.base), None
        if module.draft_vocabulary:
            draft_ids = module.draft_vocabulary.choose(checkpoint.base_folder, checkpoint.base.vocab_size)
        config = replace(
            config,
            draft_vocabulary=DraftFile(len(draft_ids)) if draft_ids else None,
            base=reference_from(checkpoint, out, reference=reference),
        )
        tensors = _initial_tensors(checkpoint.base, checkpoint.base_weights, config, module)
        with module_folder(checkpoint, out, reference=reference, force=force) as folder:
            _write_module(folder, config, tensors, draft_ids)
    return config


def _config(module: NewModule, base: BaseConfig) -> RecyclerConfig:
    """Return the module's config on this base, but for its draft vocabulary and the base's identity."""
    if not 1 <= module.num_layers <= base.num_layers:
        raise InputError(f"--layers is {module.num_layers}; expected 1 to {base.num_layers}, the base's own")
    config = RecyclerConfig(
        module.num_layers, base.model_type, tap=module.tap, concat=module.concat, recycle=module.recycle,
        window=module.window, qk_norm=module.qk_norm,
    )  # fmt: skip
    config.check("attach")
    config.check_base(base, "--tap")
    return config


def _write_module(folder: Path, config: RecyclerConfig, tensors: Tensors, draft_ids: list[int] | None) -> None:
    write_arrays(folder / "model.safetensors", tensors)
    if config.draft_vocabulary and draft_ids:
        config.draft_vocabulary.write(folder, draft_ids)
    write_json(folder / "config.json", config.to_json())


def _initial_tensors(base: BaseConfig, weights: BaseWeights, config: RecyclerConfig, module: NewModule) -> Tensors:
    """Make the module's tensors, in the type that the base is stored in."""
    generator = np.random.default_rng(module.seed)
    shapes = config.tensor_shapes(base)
    own_norms = ("embedding_norm.weight", *config.hidden_norms())
    tensors: Tensors = {name: np.ones(shapes[name], np.float32) for name in own_norms}
    if module.init == "random":
        tensors |= {
            name: _random(name, shape, base, generator) for name, shape in shapes.items() if name not in tensors
        }
    else:
        tensors["projection.weight"] = _averaging(base.hidden_size, config, generator)
        tensors |= {name: weights.stored(f"model.{name}") for name in base.norm_shapes("norm")}
        tensors |= _last_layers(base, weights, config)
    kind = weights.stored("model.norm.weight").dtype
    return {name: value.astype(kind) for name, value in tensors.items()}


def _random(name: str, shape: tuple[int, ...], base: BaseConfig, generator: np.random.Generator) -> NDArray[np.generic]:
    """Draw a tensor: norms that change nothing, no biases, and matrices that keep the variance of what they read."""
    if len(shape) == 1:
        return _neutral(name, shape, base)
    return generator.normal(0.0, shape[1] ** -0.5, shape)


def _neutral(name: str, shape: tuple[int, ...], base: BaseConfig) -> NDArray[np.generic]:
    """Make a bias or a norm's weight that changes nothing."""
    return np.zeros(shape) if name.endswith(".bias") or base.norm.plus_one else np.ones(shape)


def _averaging(size: int, config: RecyclerConfig, generator: np.random.Generator) -> NDArray[np.generic]:
    """Make a projection that averages the embedding with the mean of the taps, plus a little noise.

    An input has the same weights wherever its columns stand.
    """
    half, taps = 0.5 * np.eye(size, dtype=np.float32), len(config.tap)
    noise = generator.normal(0.0, PROJECTION_NOISE, (size, (1 + taps) * size)).astype(np.float32)
    embedding, states = np.split(np.concatenate([half, *[half / taps] * taps], axis=1) + noise, [size], axis=1)
    parts = {"embedding": embedding, "hidden_state": states}
    return np.concatenate([parts[name] for name in config.concat], axis=1)


def _last_layers(base: BaseConfig, weights: BaseWeights, config: RecyclerConfig) -> Tensors:
    """Copy the base's last layers; norms that those lack change nothing but the scale."""
    first = base.num_layers - config.num_layers
    tensors: Tensors = {}
    for index in range(config.num_layers):
        theirs = base.layer_shapes(f"model.layers.{first + index}.")
        for name, shape in config.layers_of(base).layer_shapes("").items():
            stored_name = f"model.layers.{first + index}.{name}"
            own = weights.stored(stored_name) if stored_name in theirs else _neutral(name, shape, base)
            tensors[f"layers.{index}.{name}"] = own
    return tensors
