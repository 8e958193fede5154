"""What controls and constraints cost a row of logits, for vocabularies of a size.

    python benchmarks/processors.py TOKENIZER.json … [--length 1000]

Random logits; microseconds a choice in all, medians of rows in turns. Constraints need llguidance.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from recycle_onnx.runtime.config import GenerationConfig
from recycle_onnx.runtime.decoding.chooser import make_chooser
from recycle_onnx.runtime.decoding.sampling import Chooser
from recycle_onnx.runtime.structured import Constraints, JsonSchema, Regex

ROWS = 60
STOPS = frozenset([0])
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age", "tags"],
}
CONTROLS: dict[str, GenerationConfig] = {
    "greedy": GenerationConfig(),
    "temperature 1": GenerationConfig(temperature=1),
    "temperature 1, top-p 0.9": GenerationConfig(temperature=1, top_p=0.9),
    "logit bias of 3 tokens": GenerationConfig(logit_bias={1: 1.0, 2: 2.0, 3: float("-inf")}),
    "repetition penalty": GenerationConfig(repetition_penalty=1.1),
    "presence and frequency penalty": GenerationConfig(presence_penalty=0.5, frequency_penalty=0.5),
    "no 3-gram twice": GenerationConfig(no_repeat_ngram_size=3),
    "JSON schema": GenerationConfig(constraint=JsonSchema(PERSON)),
    "regular expression": GenerationConfig(constraint=Regex("( ?[a-z]+){200}")),
}


def chooser(config: GenerationConfig, tokenizer: Tokenizer, prompt: list[int]) -> Chooser:
    """As a generation makes one."""
    size = tokenizer.get_vocab_size()
    prepared = None if config.constraint is None else Constraints(tokenizer, size).prepare(config.constraint, STOPS)
    return make_chooser(config, prompt, ROWS, size, STOPS, prepared)


def costs(tokenizer: Tokenizer, length: int) -> dict[str, float]:
    """Microseconds of a choice after a text of `length` tokens, by controls."""
    size, dice = tokenizer.get_vocab_size(), np.random.default_rng(0)
    prompt = dice.integers(1, size, length).tolist()
    choosers = {name: chooser(config, tokenizer, prompt) for name, config in CONTROLS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in choosers}
    for row in range(ROWS):
        logits = dice.normal(0, 4, size).astype(np.float32)  # some 2 nats of entropy, as language models have
        logits[0] = -100  # no text ends
        for name, choose in choosers.items():
            started = time.perf_counter()
            choose.choose(logits, length + row)
            seconds[name].append(time.perf_counter() - started)
    return {name: 1e6 * statistics.median(times) for name, times in seconds.items()}


@click.command()
@click.argument("tokenizers", type=Path, nargs=-1, required=True)
@click.option("--length", default=1000, show_default=True, help="Tokens of the text before.")
def main(tokenizers: tuple[Path, ...], length: int) -> None:
    """Measure with each of TOKENIZERS."""
    columns = {}
    for path in tokenizers:
        tokenizer = Tokenizer.from_file(str(path))
        columns[f"{tokenizer.get_vocab_size():,} tokens"] = costs(tokenizer, length)
    table = Table("microseconds a choice", *columns)
    for name in CONTROLS:
        table.add_row(name, *(f"{column[name]:.0f}" for column in columns.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
