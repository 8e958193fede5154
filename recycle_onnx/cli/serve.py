"""`recycle-onnx serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recycle_onnx.cli import options
from recycle_onnx.errors import InputError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080


@click.command()
@click.argument("bundle", type=Path)
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
@click.option("--slots", type=int, default=2, show_default=True, help="Generations at a time.")
@click.option("--queue", type=int, default=64, show_default=True, help="Requests that may wait for a slot.")
@click.option("--caches", type=int, default=4, show_default=True, help="Texts kept in memory to go on from.")
@click.option("--max-request-bytes", type=int, default=4 << 20, show_default=True)
@click.option("--body-timeout", type=float, default=30, show_default=True, help="Seconds for a request to come in.")
@click.option("--queue-timeout", type=float, default=60, show_default=True, help="Seconds to wait for a slot.")
@click.option("--timeout", type=float, default=300, show_default=True, help="Seconds an answer may take.")
@options.loading
def serve(
    bundle: Path,
    host: str,
    port: int,
    token: str | None,
    allow_origin: tuple[str, ...],
    name: str | None,
    slots: int,
    queue: int,
    caches: int,
    max_request_bytes: int,
    body_timeout: float,
    queue_timeout: float,
    timeout: float,
    **settings: Any,
) -> None:
    """Serve the model in BUNDLE to OpenAI clients, with a page to chat at /.

    Only this machine can reach it unless --host says otherwise.
    """
    import asyncio
    import signal

    from recycle_onnx.serve.limits import Limits
    from recycle_onnx.serve.server import Address, Server

    if name == "":
        raise InputError("the name is empty; expected what clients are to call the model")
    address = Address(host, port, token, frozenset(allow_origin))
    limits = Limits(slots, queue, caches, max_request_bytes, body_timeout, queue_timeout, timeout)
    model = options.load(bundle, settings)
    server = Server(model, name or bundle.resolve().name, address, limits)
    click.echo(f"serving {server.name} at {server.url} (API: {server.url}/v1); Ctrl-C ends it", err=True)
    options.note_module(model, model.generation_config)  # behind the line that tells programs where it is
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it ends its answers, and itself in the way supervisors expect
    asyncio.run(server.run())
