"""`recycle-onnx run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from recycle_onnx.bundle import MANIFEST
from recycle_onnx.cli import options
from recycle_onnx.cli.chat import ChatChoices, talk
from recycle_onnx.cli.generate import read_prompt, show
from recycle_onnx.cli.paths import SOURCE
from recycle_onnx.cli.quantization import KV
from recycle_onnx.cli.report import as_json, stages
from recycle_onnx.cli.sources import adapting, note
from recycle_onnx.errors import InputError


@dataclass(frozen=True)
class CacheChoices:
    """The options of an export into the user's cache, by their names."""

    precision: str | None
    kv: Literal["int8"] | None
    revision: str | None
    adapter: Path | None
    force: bool

    def bundle(self, source: str, threads: int | None) -> tuple[Path, bool]:
        """Return the folder of the source's bundle, and whether it was exported just now.

        Raises:
            InputError: no such source, one that cannot be exported, or choices about what is a bundle already.
            RecycleError: the export failed.
        """
        if (Path(source) / MANIFEST).exists():
            if self != CacheChoices(None, None, None, None, False):
                raise InputError(
                    f"{source} is a bundle; "
                    "--precision, --kv, --revision, --adapter and --force are for what is exported first"
                )
            return Path(source), False
        from recycle_onnx.checkpoint.cached import cached_place, is_whole
        from recycle_onnx.checkpoint.sources import NamedBase

        precision = self.precision or "int8"
        named = NamedBase(source, self.revision, self.adapter)
        place = cached_place(named, precision, self.kv)
        if not self.force and is_whole(place, note):
            return place, False
        from recycle_onnx.export import export_to_cache

        with stages() as report:
            export_to_cache(named, place, precision, kv=self.kv, threads=threads, note=note, report=report)
        note(f"exported to {place}, from where the next run starts at once")
        return place, True


@click.command()
@click.argument("source", type=SOURCE)
@click.option("--prompt", help="Answer this message, and end; - reads it from standard input.")
@click.option(
    "--precision", type=click.Choice(["int8", "int4", "fp16", "fp32"]), help="Of the weights.  [default: int8]"
)
@KV
@click.option("--revision", help="Branch, tag or commit of a model on the Hugging Face hub.")
@adapting
@click.option("--force", is_flag=True, help="Export again, even if that was done before.")
@options.chatting
@options.controls
@options.loading
@click.option("--json", "json_", is_flag=True, help="Print the answer to --prompt as one JSON object.")
def run(source: str, prompt: str | None, json_: bool, **settings: Any) -> None:
    """Chat with SOURCE: a GGUF file, a Hugging Face folder, a checkpoint, a hub id (org/name) or a bundle.

    What is not a bundle is exported into the user's cache once; the next run starts at once. --prompt answers one
    message, otherwise it is as `recycle-onnx chat`.
    """
    if json_ and prompt is None:
        raise InputError("--json is for one answer; expected --prompt with it")
    message = None if prompt is None else read_prompt(prompt)
    cached, choices = options.chosen(CacheChoices, settings), options.chosen(ChatChoices, settings)
    folder, exported = cached.bundle(source, settings["threads"])
    model = options.load(folder, settings)
    config = options.config(model, settings)
    if message is None:
        talk(model, config, choices)
        return
    generation = choices.conversation(model).send(message, config)
    options.note_module(model, config)
    if json_:
        about = {"bundle": str(folder), "exported": exported}
        click.echo(as_json({**about, **generation.finish().to_json()}))
        return
    show("", generation)
