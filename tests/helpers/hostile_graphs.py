"""Bundles whose full model never answers, or fails: operators that no check of the graph can see through."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from recycle_onnx.bundle import describe_files
from recycle_onnx.files import read_json, write_json

BEFORE = "logits_before"
"""What the full model's last operator gives; the operators of a case make `logits` of it."""


def write_endless(source: Path, folder: Path) -> Path:
    """A copy of the bundle at `source`, with a loop between the full model's last operator and its logits."""
    again = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_out"]), helper.make_node("Sin", ["value"], ["value_out"])],
        "again",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, None),
        ],
    )
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["always"], value=always),
        helper.make_node("Loop", ["", "always", BEFORE], ["logits"], body=again),
    ]
    return _write(source, folder, nodes)


def write_failing(source: Path, folder: Path) -> Path:
    """A copy that takes logits from beyond their end."""
    beyond = helper.make_tensor("beyond", TensorProto.INT64, [1], [1 << 40])
    nodes = [
        helper.make_node("Constant", [], ["beyond"], value=beyond),
        helper.make_node("Gather", [BEFORE, "beyond"], ["logits"], axis=1),
    ]
    return _write(source, folder, nodes)


def _write(source: Path, folder: Path, nodes: Sequence[NodeProto]) -> Path:
    shutil.copytree(source, folder)
    graph_file = folder / "model.onnx"
    model = onnx.load(graph_file, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = [BEFORE if name == "logits" else name for name in node.output]
    model.graph.node.extend(nodes)
    onnx.save(model, graph_file)
    manifest = read_json(folder / "recycle.json")
    for name, file in describe_files(folder, ["model.onnx"]).items():
        manifest["files"][name] = {"bytes": file.bytes, "sha256": file.sha256}
    write_json(folder / "recycle.json", manifest)
    return folder
