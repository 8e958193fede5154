"""`recycle-onnx doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from recycle_onnx.cli.options import pairs, places, placing
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, stages


@click.command(context_settings={"default_map": {"provider": "auto"}})
@click.argument("bundle", type=PATH, required=False)
@placing
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@click.option(
    "--session-config", multiple=True, metavar="NAME=VALUE",
    help="A setting of ONNX Runtime's sessions that your application gives in the place of ours; may be repeated.",
)  # fmt: skip
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def doctor(
    bundle: Path | None, threads: int | None, session_config: tuple[str, ...], json_: bool, **settings: Any
) -> None:
    """Say what this machine can do, whether BUNDLE is sound on it, and what to change.

    The exit code is 1 if something is broken; advice leaves it at 0.
    """
    from recycle_onnx.cli.doctor_view import show
    from recycle_onnx.doctor import examine

    config = pairs("session-config", session_config, "session.force_spinning_stop=1")
    with stages() as report:
        examination = examine(bundle, **places(settings), threads=threads, session_config=config, progress=report)
    if json_:
        click.echo(as_json(examination.to_json()))
    else:
        show(examination)
    sys.exit(int(examination.broken))
