"""A server under honest and hostile clients for a long time: all honest requests answered, and memory that stays.

python benchmarks/soak_server.py BUNDLE --warm-up 2 --minutes 10
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from soak import report, sample

import recycle_onnx
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.server import Address, Server, Uvicorn

CLIENTS = Path(__file__).with_name("soak_clients.py")
LIMITS = Limits(slots=2, queue=200, body_seconds=5, generation_seconds=10)
SLOWEST_HEALTH = 1.0
"""Seconds that /health may take, whatever else is asked."""


def soak(server: Server, seconds: float, clients: int, hostile: int, over: threading.Event) -> dict[str, Any]:
    """Return what the clients say of the server, which runs in this thread until they have ended."""
    with ThreadPoolExecutor(1) as pool:

        def begin(uvicorn: Uvicorn) -> None:
            made.append(pool.submit(ask, uvicorn))

        def ask(uvicorn: Uvicorn) -> dict[str, Any]:
            try:
                numbers = {"seconds": seconds, "clients": clients, "hostile": hostile}
                options = [part for name, number in numbers.items() for part in (f"--{name}", str(number))]
                command = [sys.executable, str(CLIENTS), server.url, *options]
                client = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                return dict(json.loads(client.stdout))
            finally:
                over.set()
                uvicorn.should_exit = True

        made: list[Any] = []
        asyncio.run(server.run(begin))
        return dict(made[0].result())


@click.command()
@click.argument("bundle", type=Path)
@click.option("--minutes", default=10.0, show_default=True, help="What is measured, behind the warm-up.")
@click.option("--warm-up", default=2.0, show_default=True, help="Minutes in which caches and pools fill.")
@click.option("--clients", default=100, show_default=True, help="All of them.")
@click.option("--hostile", default=5, show_default=True, help="Those of them that mean harm.")
def main(bundle: Path, minutes: float, warm_up: float, clients: int, hostile: int) -> None:
    """Soak a server of BUNDLE; ends with 1 where an honest request failed or /health was slow."""
    server = Server(recycle_onnx.load(bundle, threads=1), "soak", Address(port=0), LIMITS)
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample, 1, over)
        outcome = soak(server, 60 * (warm_up + minutes), clients, hostile, over)
        samples = sampling.result()
    click.echo(json.dumps(outcome))
    if minutes >= 1:
        report("resident", samples[:, 0], samples[:, 1], warm_up)
        report("allocated", samples[:, 0], samples[:, 2], warm_up)
    sys.exit(1 if outcome["failures"] or outcome["slowest_health_s"] > SLOWEST_HEALTH else 0)


if __name__ == "__main__":
    main()
