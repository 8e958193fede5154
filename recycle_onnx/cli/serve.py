"""`recycle-onnx serve`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recycle_onnx.cli import options
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import echo
from recycle_onnx.cli.sources import note
from recycle_onnx.errors import InputError

if TYPE_CHECKING:
    from recycle_onnx.runtime.model import Model
    from recycle_onnx.serve.limits import Limits

DEFAULT_PROMPT_CACHE_GB = 4.0
"""Some 85 000 tokens of a model of 135M parameters, and 15 000 of one of 7B."""
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
"""This machine alone: whoever opens it to others gives it a token."""


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address to listen on; others need --token.")
@click.option("--port", type=int, default=DEFAULT_PORT, show_default=True, help="0 is any free one.")
@click.option("--token", envvar="RECYCLE_ONNX_TOKEN", help="What clients must send as their API key.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A site whose pages may use the server, as https://app.example; may be repeated.",
)
@click.option("--name", help="What the model is called.  [default: the bundle's folder]")
@click.option("--strict-model", is_flag=True, help="Refuse requests that name another model.")
@click.option("--slots", type=int, default=2, show_default=True, help="Generations at a time.")
@click.option("--queue", type=int, default=64, show_default=True, help="Requests that may wait for a slot.")
@click.option("--caches", type=int, default=4, show_default=True, help="Texts kept in memory to go on from.")
@click.option(
    "--prompt-cache-gb",
    type=float,
    metavar="GB",
    help="Gigabytes of prompts kept on disk, for the next start too; 0 is none.  "
    f"[default: {DEFAULT_PROMPT_CACHE_GB:g}, and 0 with --host or another provider than cpu]",
)
@click.option("--max-request-bytes", "body_bytes", type=int, default=4 << 20, show_default=True)
@click.option(
    "--body-timeout", "body_seconds", type=float, default=30, show_default=True,
    help="Seconds for a request to come in.",
)  # fmt: skip
@click.option(
    "--queue-timeout", "queue_seconds", type=float, default=60, show_default=True, help="Seconds to wait for a slot."
)
@click.option(
    "--timeout", "generation_seconds", type=float, default=300, show_default=True, help="Seconds an answer may take."
)
@options.loading
def serve(
    bundle: Path,
    host: str,
    port: int,
    token: str | None,
    allow_origin: tuple[str, ...],
    name: str | None,
    strict_model: bool,
    **settings: Any,
) -> None:
    """Serve the model in BUNDLE to OpenAI clients, with a page to chat at /.

    Only this machine can reach it unless --host says otherwise.
    """
    import asyncio
    import signal

    from recycle_onnx.runtime.ort.provider_table import CPU
    from recycle_onnx.serve.limits import Limits
    from recycle_onnx.serve.server import Address, Server

    if name == "":
        raise InputError("the name is empty; expected what clients are to call the model")
    address = Address(host, port, token, frozenset(allow_origin))
    wanted = settings["prompt_cache_gb"]
    limits = options.chosen(Limits, settings | {"prompt_cache_gb": wanted or 0.0})
    model = options.load(bundle, settings)
    if wanted is None and address.is_local and model.provider == CPU:
        limits = replace(limits, prompt_cache_gb=DEFAULT_PROMPT_CACHE_GB)
    server = Server(model, name or bundle.resolve().name, address, limits, strict_model)
    echo(f"serving {server.name} at {server.url} (API: {server.url}/v1); Ctrl-C ends it", err=True)
    _note_prompts(model, limits)
    options.note_module(model, model.generation_config)  # behind the line that tells programs where it is
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it ends its answers, and itself in the way supervisors expect
    asyncio.run(server.run())


def _note_prompts(model: Model, limits: Limits) -> None:
    """Say that prompts are kept, and where: whoever asks may not expect it."""
    from recycle_onnx.serve.prompt_files import block_size, prompts_folder

    if limits.prompt_cache_gb:
        note(
            f"prompts of more than {block_size(model)} tokens are kept on disk, up to {limits.prompt_cache_gb:g} GB "
            f"in {prompts_folder()}; --prompt-cache-gb 0 keeps none"
        )
