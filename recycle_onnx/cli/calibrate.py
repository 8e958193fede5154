"""`recycle-onnx calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recycle_onnx.cli import options
from recycle_onnx.cli.paths import PATH
from recycle_onnx.cli.report import as_json, echo, progress
from recycle_onnx.cli.steps import step_times


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--prompts", type=PATH, help="Text or .jsonl, a prompt a line.  [default: the model's own texts]")
@click.option("--field", help="Where each line of JSON has its prompt.  [default: messages, turns or prompt]")
@click.option("--context", default=128, show_default=True, help="Tokens before the steps that are timed.")
@click.option("--new-tokens", default=64, show_default=True, help="After each prompt, to count acceptance.")
@click.option("--threads", type=int, help="Threads of each session.  [default: one a physical core]")
@options.placing
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def calibrate(
    bundle: Path,
    prompts: Path | None,
    field: str | None,
    context: int,
    new_tokens: int,
    threads: int | None,
    json_: bool,
    **settings: Any,
) -> None:
    """Measure BUNDLE on this machine, and let `auto` start from that.

    It is kept in the user's cache, for this bundle, processor, provider, ONNX Runtime and number of threads.
    """
    from dataclasses import asdict

    import recycle_onnx
    from recycle_onnx.bench.calibrate import calibrate as run
    from recycle_onnx.prompts import read_prompts
    from recycle_onnx.runtime.decoding.auto import first_choice
    from recycle_onnx.runtime.decoding.calibration import check_cache

    asked = read_prompts(prompts, field) if prompts else []
    model = recycle_onnx.load(bundle, threads=threads, fixed_threads=True, **options.places(settings))
    check_cache(model.bundle, model.providers, threads)
    texts = [prompt.ids(model.bundle.folder, model.tokenizer) for prompt in asked]
    with progress("calibrating") as update:
        calibration = run(model, texts, context=context, new_tokens=new_tokens, report=update)
    path = calibration.save(model.bundle, model.providers, threads)
    proposer, chain, speedup = first_choice(calibration, model.bundle.manifest.longest_chain)
    if json_:
        start = {"source": proposer, "chain": chain, "expected_speedup": speedup}
        click.echo(as_json({"file": str(path), **asdict(calibration), "auto_starts_with": start}))
        return
    echo(f"steps in ms: {step_times(calibration.step_ms)}")
    for name, places in calibration.acceptance.items():
        listed = ", ".join(f"{rate:.0%}" for rate in places) or "nothing was proposed"
        echo(f"{name}, accepted by place in a chain: {listed}")
    choice = f"{chain} tokens of the {proposer}, {speedup:.2f}x full expected" if chain else "the full model alone"
    echo(f"auto starts with {choice}")
    echo(f"kept in {path}")
