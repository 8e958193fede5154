"""Prompts on disk: what was read once is not read again, and no text is another one for it."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import recycle_onnx
from recycle_onnx.checkpoint import NewModule, attach
from recycle_onnx.export import ExportOptions, Quantization, export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.runtime import tensor_file
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.ort.providers import why_too_old
from recycle_onnx.serve import prompt_files
from recycle_onnx.serve.limits import Limits
from recycle_onnx.serve.prefixes import PrefixCaches
from recycle_onnx.serve.prompt_files import PromptFiles
from recycle_onnx.serve.prompt_saver import PromptSaver
from tests.helpers import tiny
from tests.helpers.patience import PATIENCE
from tests.serve.conftest import NAME, serving, wait_until

BLOCK = 16
STRATEGIES = ("auto", "full", "alternate", "verify", "lookup")
LONG = [3 + (7 * number + number * number) % 290 for number in range(101)]
"""A prompt of six whole blocks, and a few tokens."""


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECYCLE_ONNX_CACHE", str(tmp_path / "cache"))


def export_trained(folder: Path, seed: int, options: ExportOptions | None = None, **base: object) -> Model:
    """A random model whose module counts as trained, so that `auto` asks it; several chunks a prompt."""
    tiny.write_base(folder / "model", tiny.tiny_config(context_length=512), seed)
    config = folder / "model" / "config.json"
    write_json(config, {**read_json(config), **base})
    attach(folder / "model", folder / "model", NewModule(seed=seed))
    export(folder / "model", folder / "bundle", options)
    manifest = read_json(folder / "bundle" / "recycle.json")
    manifest["recycler"]["trained_depth"] = 1
    write_json(folder / "bundle" / "recycle.json", manifest)
    model = recycle_onnx.load(folder / "bundle", threads=1)
    model.prefill_chunk = 2 * BLOCK
    return model


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Weights, keys and values in int8."""
    if reason := why_too_old("ort", "int8"):
        pytest.skip(reason)
    options = ExportOptions(quantization=Quantization(8), kv="int8", compare=False, epsilon=False)
    return export_trained(tmp_path_factory.mktemp("eight"), seed=5, options=options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return export_trained(tmp_path_factory.mktemp("plain"), seed=5)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose layers see the last 20 tokens only."""
    window = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 20}
    return export_trained(tmp_path_factory.mktemp("windowed"), seed=6, **window)


@dataclass
class Process:
    """What a server does between its start and its end: its caches, and how many tokens of each prompt it restored."""

    model: Model
    limit: float = 1e9
    restored: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.saver = PromptSaver(PromptFiles(self.model, self.limit), 4)
        self.caches = PrefixCaches(self.model, 4, self.saver, self.restored.append)

    def answer(self, prompt: list[int], strategy: str = "verify", new_tokens: int = 20) -> list[int]:
        with self.caches.lend(prompt, strategy) as decoder:
            answer = self.model.stream(
                prompt, strategy=strategy, max_new_tokens=new_tokens, stop_ids=(), decoder=decoder
            )
            return answer.finish().tokens

    def end(self) -> None:
        self.saver.close(PATIENCE)


def answer(model: Model, prompt: list[int], strategy: str = "verify", limit: float = 1e9) -> tuple[list[int], int]:
    """Start a process, ask it one thing and end it; return the answer, and how many tokens it restored."""
    process = Process(model, limit)
    tokens = process.answer(prompt, strategy)
    process.end()
    return tokens, process.restored[0]


def fresh(model: Model, prompt: list[int], strategy: str = "verify") -> list[int]:
    return model.generate(prompt, strategy=strategy, max_new_tokens=20, stop_ids=()).tokens


def files() -> list[Path]:
    return sorted(prompt_files.prompts_folder().rglob("*.safetensors"))


def in_order(model: Model, prompt: list[int]) -> list[Path]:
    """The files of a prompt, those of its beginning first."""
    chain: list[Path] = []
    for path in files():
        arrays, _ = tensor_file.read(path)
        at = [
            start
            for start in range(0, len(prompt), BLOCK)
            if prompt[start : start + BLOCK] == arrays["full.tokens"].tolist()
        ]
        chain += [path] * len(at)
    by_tokens = {tuple(tensor_file.read(path)[0]["full.tokens"].tolist()): path for path in chain}
    blocks = (tuple(prompt[start : start + BLOCK]) for start in range(0, len(prompt), BLOCK))
    return [by_tokens[block] for block in blocks if block in by_tokens]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["model", "windowed", "eight_bits"])
def test_a_restarted_server_reads_only_what_is_new_and_says_the_same(
    kind: str, strategy: str, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(kind)
    expected = fresh(model, LONG, strategy)
    assert answer(model, LONG, strategy) == (expected, 0)
    assert answer(model, LONG, strategy) == (expected, 96)
    next_turn = [*LONG, *expected, 7, 8, 9]
    tokens, restored = answer(model, next_turn, strategy)
    assert tokens == fresh(model, next_turn, strategy)
    assert restored == 112 or (strategy == "auto" and restored == 96)  # which lets the module fall behind


def test_a_prompt_that_goes_another_way_keeps_what_is_common(model: Model) -> None:
    answer(model, LONG)
    other = [*LONG[:50], 299, *LONG[51:]]
    assert answer(model, other) == (fresh(model, other), 48)
    assert answer(model, [299, *LONG[1:]])[1] == 0
    assert answer(model, LONG[:48])[1] == 32  # the last token is always read
    assert answer(model, LONG[:49])[1] == 48


def test_what_is_restored_is_what_was_read_to_the_bit(model: Model) -> None:
    def read(decoder: Decoder) -> dict[str, np.ndarray]:
        decoder.prefill(LONG)
        decoder.start_recycling(5)
        return {name: array.copy() for name, array in decoder.snapshot().items()}

    expected = read(model.decoder("verify"))
    answer(model, LONG)
    decoder = model.decoder("verify")
    decoder.recall = PromptFiles(model, 1e9).restore
    restored = read(decoder)
    assert decoder.work.reused == 96
    assert restored.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(restored[name], array, err_msg=name)


def test_texts_share_the_files_of_what_they_have_in_common(model: Model) -> None:
    answer(model, LONG)
    before = {path: path.stat().st_ino for path in files()}
    assert len(before) == 7  # six of the prompt, and one that the answer has filled
    answer(model, [*LONG[:65], *LONG])  # the module's last row of the fourth block has read token 64
    after = {path: path.stat().st_ino for path in files()}
    assert before.items() <= after.items()
    assert len(after) == 7 + 7


def test_strategies_without_the_module_have_files_of_their_own(model: Model) -> None:
    answer(model, LONG, "full")
    assert answer(model, LONG, "verify")[1] == 0
    assert answer(model, LONG, "lookup")[1] == answer(model, LONG, "auto")[1] == 96


def test_an_answer_of_one_token_leaves_nothing_that_the_module_has_not_read(model: Model) -> None:
    process = Process(model)
    process.answer(LONG, new_tokens=1)
    process.end()
    assert files() == []
    assert answer(model, LONG) == (fresh(model, LONG), 0)


def test_memory_goes_before_the_disk_where_it_knows_as_much(model: Model) -> None:
    process = Process(model)
    process.answer(LONG)
    process.answer(LONG)
    assert process.restored == [0, 0]
    wait_until(lambda: len(files()) == 7)
    process.answer([*LONG[:50], *LONG])  # of its text the caches in memory have less than half in common
    process.end()
    assert process.restored == [0, 0, 48]


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "nothing": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    "no safetensors": lambda path: path.write_text("the cat sat on the mat"),
    "another block": lambda path: path.write_bytes(files()[0 if files()[0] != path else 1].read_bytes()),
    "another bundle": lambda path: forge(path, bundle="0" * 64),
    "another version": lambda path: forge(path, version="0.0.1"),
    "another processor": lambda path: forge(path, processor="abacus"),
    "a conversation": lambda path: forge(path, format="recycle-onnx conversation 1"),
    "fewer rows": lambda path: forge_rows(path),
}


def forge(path: Path, **changes: str) -> None:
    arrays, about = tensor_file.read(path)
    tensor_file.write(path, arrays, {**about, **changes})


def forge_rows(path: Path) -> None:
    arrays, about = tensor_file.read(path)
    name = "full.past_key_values.1.value"
    tensor_file.write(path, {**arrays, name: arrays[name][:, :-1]}, about)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_not_as_it_was_written_is_ignored_with_a_line(
    name: str, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = answer(model, LONG)
    damaged = in_order(model, LONG)[3]
    sound = damaged.read_bytes()
    DAMAGES[name](damaged)
    assert answer(model, LONG) == (expected, 48)
    assert len(caplog.records) == 1
    assert "ignored" in caplog.text
    assert damaged.name in caplog.text
    assert damaged.read_bytes() == sound  # it was written anew
    assert answer(model, LONG) == (expected, 96)
    assert len(caplog.records) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
def test_what_is_no_file_is_ignored_too(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = answer(model, LONG)
    first, second = in_order(model, LONG)[:2]
    second.unlink()
    second.mkdir()
    assert answer(model, LONG) == (expected, 16)
    assert "expected a regular file" in caplog.text
    first.unlink()
    first.symlink_to("/dev/zero")
    assert answer(model, LONG) == (expected, 0)


@pytest.mark.parametrize("what", ["__version__", "processor", "onnxruntime"])
def test_other_programs_and_machines_do_not_see_the_files(
    what: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(model, LONG)
    changes = {"__version__": (prompt_files, "0.0.1"), "processor": (prompt_files.processor, lambda: "abacus")}
    place, value = changes.get(what, (prompt_files.ort, "0.0.1"))
    monkeypatch.setattr(place, "identity" if what == "processor" else "__version__", value)
    assert answer(model, LONG)[1] == 0


def test_other_bundles_do_not_see_the_files(model: Model, windowed: Model) -> None:
    answer(model, LONG)
    assert answer(windowed, LONG) == (fresh(windowed, LONG), 0)


def test_the_disk_holds_no_more_than_the_limit_and_forgets_what_was_used_longest_ago(model: Model) -> None:
    answer(model, LONG)
    size = files()[0].stat().st_size
    other, third = [number + 1 for number in LONG], [number + 2 for number in LONG]
    limit = 14.5 * size
    answer(model, other, limit=limit)
    assert answer(model, LONG, limit=limit)[1] == 96  # now `other` was used longest ago
    answer(model, third, limit=limit)
    assert sum(path.stat().st_size for path in files()) <= limit
    assert [answer(model, text, limit=limit)[1] for text in (LONG, third, other)] == [96, 96, 0]


def test_the_end_of_a_text_is_forgotten_before_its_beginning(model: Model) -> None:
    answer(model, LONG)
    size = files()[0].stat().st_size
    answer(model, [299] * 40, limit=7.5 * size)  # three blocks more
    assert answer(model, LONG, limit=1e9)[1] == 64


def test_a_text_beyond_the_limit_keeps_its_beginning(model: Model) -> None:
    answer(model, LONG)
    size = files()[0].stat().st_size
    for path in files():
        path.unlink()
    answer(model, LONG, limit=2.5 * size)
    assert answer(model, LONG, limit=2.5 * size) == (fresh(model, LONG), 32)
    assert len(files()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="has other rights")
def test_prompts_are_for_their_owner_alone(model: Model) -> None:
    answer(model, LONG)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files()} == {0o600}
    assert stat.S_IMODE(files()[0].parent.stat().st_mode) == 0o700


def test_what_a_killed_server_left_is_swept(model: Model) -> None:
    answer(model, LONG)
    left = files()[0].with_name(".0123.safetensors.12345678.tmp")
    left.write_bytes(b"half")
    answer(model, LONG)
    assert not left.exists()


def test_nobody_waits_for_the_disk(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a block is being written its text's caches are lent again, for another text; what is saved stays sound."""
    writing, free, write = threading.Event(), threading.Event(), tensor_file.write

    def slow(*arguments: object) -> None:
        writing.set()
        assert free.wait(PATIENCE)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tensor_file, "write", slow)
    process = Process(model)
    process.answer(LONG)
    assert writing.wait(PATIENCE)
    longer = [*LONG[:60], *reversed(LONG)]
    assert process.answer(longer) == fresh(model, longer)
    assert files() == []
    free.set()
    process.end()
    assert answer(model, LONG) == (fresh(model, LONG), 48)  # of the first text what the second one has left
    assert answer(model, longer) == (fresh(model, longer), 160)


def test_servers_share_a_folder(model: Model) -> None:
    first, second = Process(model), Process(model)
    expected = first.answer(LONG)
    assert second.answer(LONG) == expected
    first.end()
    second.end()
    assert len(files()) == 7
    assert answer(model, LONG) == (expected, 96)


def test_a_folder_that_cannot_be_made_costs_a_line_and_no_answer(
    model: Model, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "prompts").write_text("a file")
    process = Process(model)
    for text in (LONG, [number + 1 for number in LONG]):
        assert process.answer(text) == fresh(model, text)
    process.end()
    assert len(caplog.records) == 1
    assert "is not kept" in caplog.text


def test_a_closed_model_ends_the_saving(tmp_path: Path) -> None:
    model = export_trained(tmp_path, seed=7)
    process = Process(model)
    process.answer(LONG)
    model.close()
    process.end()
    assert all(tensor_file.read(path) for path in files())


def test_over_http_the_usage_and_the_metrics_tell_what_was_restored(endless_model: Model) -> None:
    prompt = "the cat sat on the mat, the dog sat on the log, " * 40
    cached, texts, pages = [], [], []
    for _ in range(2):
        with serving(endless_model, Limits(prompt_cache_gb=1)) as running:
            answer = running.client().completions.create(model=NAME, prompt=prompt, max_tokens=8)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
            texts.append(answer.choices[0].text)
            pages.append(running.uvicorn.service.metrics.text().decode())
    assert cached == [0, 128 * (len(endless_model.encode(prompt)) // 128)]
    assert texts[0] == texts[1]
    assert 'tokens_total{kind="restored"} 0.0' in pages[0]
    assert f'tokens_total{{kind="restored"}} {cached[1]}.0' in pages[1]
    assert "restored_prompts_total 1.0" in pages[1]


def test_by_default_a_server_in_a_program_keeps_nothing(endless_model: Model) -> None:
    with serving(endless_model) as running:
        running.client().completions.create(model=NAME, prompt="the cat sat " * 200, max_tokens=2)
    assert not os.path.lexists(prompt_files.prompts_folder())
