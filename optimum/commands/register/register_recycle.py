"""`optimum-cli export recycle`: optimum finds this file in its namespace `optimum.commands.register` (PEP 420)."""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class RecycleExportCommand(BaseOptimumCLICommand):
    """`recycle-onnx export` with optimum's manners: `--model MODEL OUTPUT`."""

    COMMAND = CommandInfo(
        name="recycle", help="Export a model, and its recyclable module if it has one, as a recycle-onnx bundle."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Checkpoint or model folder, GGUF file, or hub id.")
        parser.add_argument("output", help="Folder to write the bundle to.")
        parser.add_argument("--precision", choices=["fp32", "fp16", "int8", "int4"], default="fp32")
        parser.add_argument("--flavour", choices=["ort", "standard"], default="ort")
        parser.add_argument("--revision", help="Branch, tag or commit of a hub model.")
        parser.add_argument("--force", action="store_true", help="Replace the output if it exists.")

    def run(self) -> None:
        from recycle_onnx.cli import main

        arguments = ["export", self.args.model, self.args.output, "--precision", self.args.precision]
        arguments += ["--flavour", self.args.flavour]
        arguments += ["--revision", self.args.revision] if self.args.revision else []
        main([*arguments, *(["--force"] if self.args.force else [])], prog_name="recycle-onnx")


REGISTER_COMMANDS = [(RecycleExportCommand, ExportCommand)]
