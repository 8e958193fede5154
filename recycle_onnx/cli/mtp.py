"""`recycle-onnx mtp`."""

from __future__ import annotations

from pathlib import Path

import click

from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def mtp(bundle: Path, out: Path, force: bool, json_: bool) -> None:
    """Write BUNDLE as OUT, where onnxruntime-genai's MtpGenerator finds the module as its MTP head.

    The main model is OUT/main, the head OUT. For everything else genai opens BUNDLE as it is.
    """
    from recycle_onnx.export.genai_mtp import MAIN_FOLDER, write_mtp

    write_mtp(bundle, out, force=force)
    if json_:
        click.echo(as_json({"main": str(out / MAIN_FOLDER), "head": str(out)}))
        return
    echo(f"{out}: genai.MtpGenerator(genai.Model({str(out / MAIN_FOLDER)!r}), genai.Model({str(out)!r}), …)")
