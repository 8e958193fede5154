"""A module that only proposes frequent tokens: cheaper, and no other text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import recycle_onnx
from recycle_onnx.bundle import Bundle, Manifest
from recycle_onnx.errors import InputError
from recycle_onnx.export import DraftVocabulary, ExportOptions, Quantization, export
from recycle_onnx.runtime.decoding.sampling import Sampling
from recycle_onnx.runtime.model import Model
from tests.conftest import SAMPLE
from tests.helpers import tiny
from tests.helpers.campaigns import LONG, examples
from tests.helpers.command import assert_refused, names, run
from tests.helpers.full_texts import FullTexts
from tests.helpers.prompts import LONG_STORY, story_prompts

SIZE = 512


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n".join([LONG_STORY, *story_prompts(200)]))
    return path


@pytest.fixture(scope="module")
def bundle(text: Path) -> Path:
    export(SAMPLE, text.parent / "bundle", ExportOptions(draft_vocabulary=DraftVocabulary(SIZE, text)))
    return text.parent / "bundle"


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return recycle_onnx.load(bundle, threads=1)


def test_the_most_frequent_tokens_are_chosen(text: Path, model: Model) -> None:
    chosen = model.bundle.manifest.draft_vocabulary
    assert chosen == sorted(set(chosen or []))
    lines = text.read_text().splitlines(keepends=True)
    counts = Counter(token for line in lines for token in model.encode(line))
    assert {token for token, _ in counts.most_common(100)} <= set(chosen)
    assert min(counts[token] for token in chosen) >= 0
    assert max((counts[t] for t in range(2048) if t not in set(chosen)), default=0) <= min(
        count for count in (counts[token] for token in chosen) if count
    )


def test_the_head_has_the_rows_of_the_full_models(bundle: Path) -> None:
    spec = Manifest.read(bundle / "recycle.json").graphs["recycler"]
    assert spec.vocab_size == SIZE
    onnx.checker.check_model(bundle / "recycler.onnx", full_check=True)
    graph = onnx.load(bundle / "recycler.onnx").graph
    head = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "draft_head.weight")
    embedding = load_file(SAMPLE / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(head, embedding[Manifest.read(bundle / "recycle.json").draft_vocabulary])


@pytest.mark.parametrize("chain", [1, 3])
def test_verify_gives_the_text_of_full(model: Model, sample_model: Model, full_texts: FullTexts, chain: int) -> None:
    accepted = [0, 0]
    for index, prompt in enumerate(story_prompts(200)[:: 10 if LONG else 25]):
        options = {"max_new_tokens": 40, "seed": index, "temperature": (0.0, 0.9)[index % 2]}
        expected = full_texts.tokens(prompt, **options)
        for place, candidate in enumerate((model, sample_model)):
            result = candidate.generate(prompt, strategy="verify", chain=chain, **options)
            assert result.tokens == expected
            accepted[place] += result.stats.accepted
    assert 0.6 * accepted[1] < accepted[0] <= accepted[1]


def test_only_its_tokens_are_proposed(model: Model) -> None:
    allowed = set(model.bundle.manifest.draft_vocabulary or [])
    for prompt in story_prompts(200)[::25]:
        result = model.generate(prompt, strategy="alternate", max_new_tokens=40)
        assert {token for token, own in zip(result.tokens, result.recycled, strict=True) if own} <= allowed


def test_confidence_is_that_of_the_proposed_token(model: Model) -> None:
    sure, unsure = (
        model.generate("Once upon a time", strategy="verify", chain=4, min_confidence=confidence, max_new_tokens=60)
        for confidence in (0.9, 0.0)
    )
    assert sure.tokens == unsure.tokens
    assert sure.stats.proposed < unsure.stats.proposed


@given(seed=st.integers(0, 2**32), position=st.integers(0, 1000), top_k=st.sampled_from([0, 3]))
@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_goes_by_token_id_whatever_the_vocabulary(seed: int, position: int, top_k: int) -> None:
    ids = np.array([2, 5, 7, 11, 13])
    whole = np.full(16, -1e9, np.float32)
    whole[ids] = np.random.default_rng(seed).normal(size=5)
    sampling = Sampling(1.0, top_k=top_k, seed=seed)
    assert sampling.choose(whole[ids], position, ids) == sampling.choose(whole, position)


def test_it_can_be_quantized(text: Path, tmp_path: Path) -> None:
    draft = DraftVocabulary(SIZE, text)
    export(SAMPLE, tmp_path / "small", ExportOptions(draft_vocabulary=draft, quantization=Quantization()))
    model = recycle_onnx.load(tmp_path / "small")
    assert len(Bundle.open(tmp_path / "small").manifest.draft_vocabulary or []) == SIZE
    rate = model.generate("Once upon a time", strategy="verify", max_new_tokens=60).stats.acceptance_rate
    assert rate is not None
    assert rate > 0.5


def test_a_draft_vocabulary_is_shown(bundle: Path) -> None:
    assert "512 tokens" in run("inspect", bundle).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--draft-vocab", 512), ("--draft-text",)),
        (("--draft-text", "stories.txt"), ("--draft-vocab",)),
        (("--draft-vocab", 4, "--draft-text", "TEXT"), ("draft-vocab is 4", "16 to 300")),
        (("--draft-vocab", 5000, "--draft-text", "TEXT"), ("draft-vocab is 5000", "16 to 300")),
        (("--draft-vocab", 100, "--draft-text", "nowhere.txt"), ("nowhere.txt", "no such text file")),
        (("--draft-vocab", 100, "--draft-text", "EMPTY"), ("empty.txt", "is empty")),
    ],
)
def test_a_draft_vocabulary_that_makes_no_sense_is_refused(
    options: tuple[object, ...], words: tuple[str, ...], text: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    given_files = {"TEXT": text, "EMPTY": tmp_path / "empty.txt"}
    arguments = [given_files.get(str(option), option) for option in options]
    assert_refused(run("export", tiny_checkpoint, tmp_path / "bundle", *arguments), 2, *words)
    assert names(tmp_path) == ["empty.txt"]


def test_a_base_without_a_module_has_no_draft_vocabulary(text: Path, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", tiny.tiny_config())
    with pytest.raises(InputError, match="has no recyclable module"):
        export(base, tmp_path / "bundle", ExportOptions(draft_vocabulary=DraftVocabulary(64, text)))
