"""The campaign by hand: `python -m tests.fuzz --count 20000 --report fuzz.json`, which goes on where it was stopped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from tests.fuzz.campaign import Tally, Worker, campaign, read_report, report
from tests.fuzz.kinds import KINDS

BETWEEN_REPORTS = 5.0


@click.command()
@click.option("--count", default=2000, show_default=True, help="Mutants, of all kinds together.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(sorted(KINDS)), help="These alone.")
@click.option("--seed", default=0, show_default=True)
@click.option("--seconds", default=float("inf"), help="To stop after.")
@click.option("--report", "path", type=Path, default=Path("fuzz.json"), show_default=True, help="Read and written.")
@click.option("--only", type=int, help="Try this number of one --kind again, and say what happens.")
def main(count: int, kinds: tuple[str, ...], seed: int, seconds: float, path: Path, only: int | None) -> None:
    """Try mutated files and requests; ends with 1 where one of them did harm."""
    names = list(kinds or KINDS)
    if only is not None:
        worker = Worker()
        click.echo(json.dumps(worker.try_one(names[0], seed, only), indent=2))
        worker.close()
        return
    last = [time.monotonic()]

    def save(tallies: dict[str, Tally]) -> None:
        if time.monotonic() - last[0] > BETWEEN_REPORTS:
            last[0] = time.monotonic()
            write(tallies)

    def write(tallies: dict[str, Tally]) -> None:
        text = json.dumps(report({**known, **tallies}, seed), indent=2)
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").replace(path)

    known = read_report(path, seed)
    tallies = campaign(names, count, seed, seconds=seconds, known=known, progress=save)
    write(tallies)
    told = report(tallies, seed)
    click.echo(json.dumps({"tried": told["tried"], "harms": told["harms"]}))
    sys.exit(1 if any(told["harms"].values()) else 0)


if __name__ == "__main__":
    main()
