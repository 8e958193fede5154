"""A bundle whose full model never answers: a graph may have a loop without an end, and nobody can see that in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from recycle_onnx.bundle import describe_files
from recycle_onnx.files import read_json, write_json


def write(source: Path, folder: Path) -> Path:
    """A copy of the bundle at `source`, with a loop between the full model's last operator and its logits."""
    shutil.copytree(source, folder)
    graph_file = folder / "model.onnx"
    model = onnx.load(graph_file, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["logits_before" if name == "logits" else name for name in node.output]
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
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["always"], value=always),
            helper.make_node("Loop", ["", "always", "logits_before"], ["logits"], body=again),
        ]
    )
    onnx.save(model, graph_file)
    manifest = read_json(folder / "recycle.json")
    for name, file in describe_files(folder, ["model.onnx"]).items():
        manifest["files"][name] = {"bytes": file.bytes, "sha256": file.sha256}
    write_json(folder / "recycle.json", manifest)
    return folder
