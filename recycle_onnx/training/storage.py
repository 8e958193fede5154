"""Checkpoint folders to torch and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recycle_onnx.checkpoint import BaseConfig, Checkpoint, RecyclerConfig
from recycle_onnx.checkpoint.base_weights import BaseWeights
from recycle_onnx.checkpoint.card import model_card
from recycle_onnx.checkpoint.folder import base_reference
from recycle_onnx.checkpoint.quantized import without_quantization
from recycle_onnx.checkpoint.sources.referred import REFERENCE
from recycle_onnx.checkpoint.weights import INDEX, FloatTensors, Safetensors
from recycle_onnx.errors import InputError
from recycle_onnx.files import new_folder, write_json
from recycle_onnx.safetensors_file import TYPES, Stream, write_streams
from recycle_onnx.training.model import FullModel, RecycleGPT
from recycle_onnx.training.precision import widened
from recycle_onnx.untrusted import copy_tree

TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
REFERENCE_TOKENS = 48
"""Tokens of the reference: a short text that every context holds."""
REFERENCE_ROWS = 4
"""Rows of logits that are kept: a row of a large vocabulary takes half a megabyte."""


def load_model(checkpoint: Checkpoint, base_dtype: torch.dtype = torch.float32) -> RecycleGPT:
    """Load both halves with the checkpoint's weights: the base in `base_dtype`, the module in float32.

    Raises:
        InputError: the checkpoint has no module.
    """
    if checkpoint.recycler is None or checkpoint.recycler_weights is None:
        raise InputError(f"{checkpoint.folder}: has no recyclable module; make one with `recycle-onnx attach` first")
    with _default_dtype(base_dtype):  # never all of it in float32
        model = RecycleGPT(checkpoint.base, checkpoint.recycler, checkpoint.draft_ids)
    model.recycler.float()
    fill(model.full, checkpoint.base_weights, checkpoint.base.tensor_shapes().keys())
    fill(model.recycler, checkpoint.recycler_weights, checkpoint.recycler.tensor_shapes(checkpoint.base).keys())
    return model


def load_base(base: BaseConfig, weights: FloatTensors, dtype: torch.dtype) -> FullModel:
    """Load a base by itself, with `weights` by their neutral names, held in `dtype`."""
    with _default_dtype(dtype):
        model = FullModel(base)
    fill(model, weights, base.tensor_shapes().keys())
    return model.requires_grad_(False)


def fill(module: torch.nn.Module, weights: FloatTensors, names: Iterable[str]) -> None:
    """Copy the tensors `names` into the parameters of the same names."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(torch.from_numpy(weights.float32(name)))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def save_recycler(
    checkpoint: Checkpoint, model: RecycleGPT, config: RecyclerConfig, ids: Tensor, dtype: torch.dtype
) -> None:
    """Replace `recycler/` as a whole; the base is left alone."""
    with new_folder(checkpoint.folder / "recycler", force=True) as temporary, _base_as_stored(checkpoint, model):
        _write_recycler(temporary, model, config, ids, dtype)


def save_both(
    checkpoint: Checkpoint,
    model: RecycleGPT,
    config: RecyclerConfig,
    ids: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    """Replace the checkpoint as a whole: base, module and its reference; other files are carried over."""
    old = [path.name for path in checkpoint.base_weights.files] + [INDEX, REFERENCE, "recycler"]
    with new_folder(checkpoint.folder, force=True) as temporary:
        copy_tree(checkpoint.folder, temporary, _ignore_at(checkpoint.folder, old))
        without_quantization(temporary)  # what training changed are floats
        path = temporary / "model.safetensors"
        _write_base(path, model, checkpoint.base_weights, dtypes[0])
        base = base_reference(temporary, Safetensors([path]))
        (temporary / "recycler").mkdir()
        _write_recycler(temporary / "recycler", model, replace(config, base=base), ids, dtypes[1])


def _ignore_at(root: Path, names: list[str]) -> Any:
    return lambda folder, _: names if Path(folder) == root else []


def _write_recycler(folder: Path, model: RecycleGPT, config: RecyclerConfig, ids: Tensor, dtype: torch.dtype) -> None:
    write_tensors(folder / "model.safetensors", _rounded(model.recycler, dtype))
    write_tensors(folder / "reference.safetensors", _reference(model, ids))
    if config.draft_vocabulary and model.draft_ids is not None:
        config.draft_vocabulary.write(folder, model.draft_ids.tolist())
    write_json(folder / "config.json", config.to_json())
    (folder / "README.md").write_text(model_card(config), encoding="utf-8")


def _write_base(path: Path, model: RecycleGPT, weights: BaseWeights, dtype: torch.dtype) -> None:
    """Write the base as its family keeps it; what else its files held is carried over."""
    rounded = {name: tensor.float().numpy() for name, tensor in _rounded(model.full, dtype).items()}
    packed = {name: torch.from_numpy(array).to(dtype) for name, array in weights.pack(rounded).items()}
    write_tensors(path, {**_others(weights), **packed})


def _others(weights: BaseWeights) -> dict[str, Tensor]:
    others = weights.others()
    if not others:  # of a GGUF file there are none
        return {}
    handles: list[Any] = [safe_open(file, framework="pt") for file in weights.files]
    return {name: handle.get_tensor(name) for handle in handles for name in others & set(handle.keys())}


def _rounded(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parameters as `dtype`; round the module's own to the same."""
    tensors = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            tensors[name] = parameter.detach().to("cpu", dtype).contiguous()
            if not torch.isfinite(tensors[name]).all():
                raise InputError(f"{name} is not finite as {dtype}; train with a lower --lr")
            # What is compared with the graphs is computed with the numbers that are stored.
            parameter.copy_(tensors[name])
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write torch's tensors as safetensors, in the order of their names.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_streams(path, {name: _stream_of(tensor) for name, tensor in sorted(tensors.items())})


def _stream_of(tensor: Tensor) -> Stream:
    """Hand on the tensor's bytes: numpy has no bfloat16."""
    kind = TYPES[str(tensor.dtype).removeprefix("torch.")]
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return Stream(kind, tuple(tensor.shape), [data])


@contextmanager
def _base_as_stored(checkpoint: Checkpoint, model: RecycleGPT) -> Iterator[None]:
    """Compute the base, within the block, in float32 with the weights that the exporter reads."""
    held = next(model.full.parameters()).dtype
    if held == torch.float32:
        yield
    elif held == TORCH_TYPES[checkpoint.base_weights.stored_type()]:
        with widened(model.full):
            yield
    else:
        # Held in another type than it is stored in: read again, since what was rounded away does not come back.
        own, model.full = model.full, load_model(checkpoint).full.to(next(model.parameters()).device)
        yield
        model.full = own


def _reference(model: RecycleGPT, ids: Tensor) -> dict[str, Tensor]:
    """Compute a few of torch's logit rows, by which the exporter checks its graphs."""
    ids = ids.flatten()[:REFERENCE_TOKENS].to(next(model.parameters()).device)
    with torch.no_grad():
        full = model.full(ids[None])
        module = model.recycle(ids[None, 1:], full.hidden_states[:, :-1], every_token=True)
    last = len(ids) - 1
    rows = torch.linspace(0, last - 1, min(REFERENCE_ROWS, last)).long()
    reference = {
        "input_ids": ids.clone(),
        "positions": rows,
        "logits": full.logits[0, rows],
        "recycler_logits": module.logits[0, rows],
    }
    return {name: value.cpu().contiguous() for name, value in reference.items()}
