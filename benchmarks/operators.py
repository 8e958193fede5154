"""Where a full step's time goes, by operator, and how fast each reads its weights.

    python benchmarks/operators.py BUNDLE [--threads 2] [--context 128] [--steps 60]

ONNX Runtime's own profile of one-token steps; what no operator accounts for is the session's and Python's.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter

import click
import onnx

from recycle_onnx.bench.conditions import Conditions
from recycle_onnx.bundle import Bundle
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.ort.sessions import open_session, session_options


def weight_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of stored weights that each product reads."""
    sizes = {
        tensor.name: int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    }
    return {
        node.name: sum(sizes.get(name, 0) for name in node.input) for node in graph.node if "MatMul" in node.op_type
    }


def profile(bundle: Bundle, threads: int, context: int, steps: int) -> tuple[list[dict[str, object]], float]:
    """Events of `steps` full steps, and the median wall seconds of one without profiling's own start."""
    spec = bundle.manifest.graphs["full"]
    options = session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as work:
        options.profile_file_prefix = str(Path(work) / "profile")
        session = open_session(bundle.graph("full"), spec, "cpu", threads, options)
        decoder = Decoder((session, None), (spec, None), bundle.manifest.context_length)
        decoder.prefill([1 + index % 1000 for index in range(context)])
        started = perf_counter()
        for _ in range(steps):
            decoder.full_step([1], keep=1)
        seconds = (perf_counter() - started) / steps
        events = json.loads(Path(session.end_profiling()).read_text())
    return events, seconds


@click.command()
@click.argument("folder", type=Path, metavar="BUNDLE")
@click.option("--threads", default=2, show_default=True)
@click.option("--context", default=128, show_default=True)
@click.option("--steps", default=60, show_default=True)
def main(folder: Path, threads: int, context: int, steps: int) -> None:
    """Print milliseconds a step, share and GB/s by operator."""
    bundle = Bundle.open(folder)
    events, seconds = profile(bundle, threads, context, steps)
    sizes = weight_bytes(onnx.load(bundle.graph("full"), load_external_data=False).graph)
    runs: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            name = str(event["name"]).removesuffix("_kernel_time")
            runs[name].append(1e-3 * float(str(event["dur"])))
            kinds[name] = str(event["args"]["op_name"])  # type: ignore[index]
    by_kind: dict[str, float] = defaultdict(float)
    bytes_by_kind: dict[str, int] = defaultdict(int)
    for name, values in runs.items():
        by_kind[kinds[name]] += sum(values[-steps:]) / steps
        bytes_by_kind[kinds[name]] += sizes.get(name, 0)
    bandwidth = Conditions.here().read_bandwidth_gb_s
    click.echo(f"a step takes {1e3 * seconds:.2f} ms; this machine reads {bandwidth:.0f} GB/s")
    for kind, ms in sorted(by_kind.items(), key=lambda item: -item[1]):
        reads = f", weights at {bytes_by_kind[kind] / ms / 1e6:.1f} GB/s" if bytes_by_kind[kind] > 1e6 else ""
        click.echo(f"{kind}: {ms:.3f} ms, {0.1 * ms / seconds:.1f} %{reads}")
    rest = 1e3 * seconds - sum(by_kind.values())
    total = sum(bytes_by_kind.values())
    click.echo(f"between operators: {rest:.3f} ms, {0.1 * rest / seconds:.1f} %")
    click.echo(f"in all: {total / 1e6:.0f} MB of weights at {total / seconds / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
