"""A bundle in the layout that onnxruntime-genai's MtpGenerator opens: main model, and the module as its MTP head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from recycle_onnx.bundle import ADVISORY, Bundle, Manifest, graph_file
from recycle_onnx.contract import FINAL_POST, HIDDEN_STATES, HIDDEN_STATES_OUT, LOGITS, GraphSpec
from recycle_onnx.errors import InputError
from recycle_onnx.files import new_folder, read_json, write_json
from recycle_onnx.untrusted import copy_file

CONFIG = "genai_config.json"
HEAD = "mtp.onnx"
MAIN_FOLDER = "main"
"""The full model's folder, within that of its head."""


def check_mtp(manifest: Manifest) -> None:
    """Refuse a module that MtpGenerator cannot feed.

    Raises:
        InputError: no module, keys and values in int8, a module with a draft vocabulary, one without layers, or one
            that reads other states than the final norm's.
    """
    wanted = "onnxruntime-genai's MtpGenerator"
    if "recycler" not in manifest.graphs:
        raise InputError(f"{wanted} needs a recyclable module, and this base has none; give it one with `attach`")
    if (cache := manifest.graphs["full"].cache_type) is not None:
        raise InputError(
            f"{wanted} has caches of floats only; this bundle has keys and values in {cache}: export it without --kv"
        )
    if manifest.draft_vocabulary is not None:
        tokens = len(manifest.draft_vocabulary)
        raise InputError(f"{wanted} needs a module that knows all tokens; this one has a draft vocabulary of {tokens}")
    if (places := manifest.graphs["recycler"].longest_chain) is not None:
        raise InputError(f"{wanted} needs a module with layers, which reads tokens; this one has {places} places")
    if (taps := manifest.graphs["recycler"].taps) != (FINAL_POST,):
        raise InputError(f"{wanted} hands the module {FINAL_POST} only; this one reads {', '.join(taps)}")


def write_mtp(bundle_folder: Path, folder: Path, *, force: bool = False) -> None:
    """Write the bundle in `bundle_folder` as two of genai's models: `folder`/main, and the head, `folder` itself.

    Both graphs lie in main, over the same weights; the head's configuration lies above them, since genai follows paths
    downwards only. The main model's logits are float16: on the CPU MtpGenerator (0.18) casts them to float32 whatever
    they are, and its cast refuses float32 (`Cast - input and output types are the same`).

    Raises:
        InputError: not a bundle, a module that does not fit (see `check_mtp`), or `folder` exists (unless `force`).
        RecycleError: the disk is full or not writable.
    """
    bundle = Bundle.open(bundle_folder)
    check_mtp(bundle.manifest)
    config = read_json(bundle_folder / CONFIG)
    module = bundle.manifest.graphs["recycler"]
    with new_folder(folder, force=force, keep=[bundle_folder]) as head:
        write_json(head / CONFIG, _head_config(config, module))
        main = head / MAIN_FOLDER
        main.mkdir()
        write_json(main / CONFIG, _main_config(config, module))
        for name in bundle.manifest.files:
            if name != CONFIG and (name.endswith(".data") or name == "tokenizer.json" or name in ADVISORY):
                copy_file(bundle_folder / name, main / name)
        _save_with_half_logits(bundle.graph("full"), main / graph_file("full"))
        copy_file(bundle.graph("recycler"), main / HEAD)


def _main_config(config: dict[str, Any], module: GraphSpec) -> dict[str, Any]:
    """Make the main model's configuration: the bundle's, and what feeds the head."""
    mtp = {
        "filename": HEAD,
        **_layers(module),
        "main_hidden_states": HIDDEN_STATES,
        "outputs": {"hidden_states": HIDDEN_STATES_OUT},
    }
    return {**config, "model": {**config["model"], "mtp": mtp}}


def _layers(module: GraphSpec) -> dict[str, int]:
    """Return what the caches of the module's layers need; they may be of another kind than the base's."""
    sizes = {"num_key_value_heads": module.num_kv_heads, "head_size": module.head_dim}
    return {"num_hidden_layers": module.num_layers, **sizes}


def _head_config(config: dict[str, Any], module: GraphSpec) -> dict[str, Any]:
    """Make the head's configuration: a decoder that reads hidden states too, in the folder below."""
    decoder = config["model"]["decoder"]
    head = {
        **decoder,
        "filename": f"{MAIN_FOLDER}/{HEAD}",
        **_layers(module),
        "inputs": {**decoder["inputs"], "hidden_states": HIDDEN_STATES},
        "outputs": {**decoder["outputs"], "hidden_states": HIDDEN_STATES_OUT},
    }
    return {**config, "model": {**config["model"], "decoder": head}}


def _save_with_half_logits(graph_path: Path, path: Path) -> None:
    """Save the same graph over the same weights, with a Cast to float16 behind its logits."""
    model = ir.load(graph_path)
    graph = model.graph
    index = next(i for i, value in enumerate(graph.outputs) if value.name == LOGITS)
    logits = graph.outputs[index]
    logits.name = f"{LOGITS}.float32"
    cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT16})
    half = cast.outputs[0]
    half.name, half.shape, half.dtype = LOGITS, logits.shape, ir.DataType.FLOAT16
    graph.append(cast)
    graph.outputs[index] = half
    ir.save(model, path)
