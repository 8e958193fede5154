"""The settings of a generation: ranges, contradictions, and the bundle's own."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import recycle_onnx
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.runtime.config import GenerationConfig, Overrides, read_defaults
from recycle_onnx.runtime.model import Model
from recycle_onnx.runtime.settings import ALIASES
from tests.helpers.command import assert_refused, run
from tests.helpers.endless import write_endless_bundle

BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max-new-tokens is 0; expected at least 1, or -1 for the end of the context"),
    ({"max_new_tokens": -2}, "max-new-tokens is -2; expected at least 1"),
    ({"max_new_tokens": None}, "max-new-tokens is None; expected at least 1"),
    ({"max_tokens": 0}, "max-new-tokens is 0; expected at least 1"),
    ({"max_new_tokens": 5, "max_tokens": 6}, "max_new_tokens was set twice, as max_tokens too"),
    ({"max_tokens": 5, "max_new_tokens": 6}, "max_new_tokens was set twice, as max_tokens too"),
    ({"max_new_tokens": 2.5}, "max-new-tokens is 2.5"),
    ({"max_new_tokens": True}, "max-new-tokens is True"),
    ({"min_new_tokens": -1}, "min-new-tokens is -1"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min-new-tokens is 9, max-new-tokens 8"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"logit_bias": {4: 1e39}}, "logit-bias of token 4 is 1e\\+39; expected minus infinity, or -1e\\+09 to 1e\\+09"),
    ({"temperature": "hot"}, "temperature is 'hot'"),
    ({"temperature": None}, "temperature is None"),
    ({"top_k": 1.5}, "top-k is 1.5"),
    ({"top_p": 0}, "top-p is 0"),
    ({"min_p": 1.1}, "min-p is 1.1; expected 0"),
    ({"min_p": -0.1}, "min-p is -0.1"),
    ({"seed": 0.5}, "seed is 0.5"),
    ({"repetition_penalty": 0.0}, "repetition-penalty is 0.0; expected 0.01 to 100"),
    ({"repetition_penalty": 5e-324}, "repetition-penalty is 5e-324; expected 0.01 to 100"),
    ({"repetition_penalty": float("nan")}, "repetition-penalty is nan"),
    ({"presence_penalty": 2.5}, "presence-penalty is 2.5; expected -2 to 2"),
    ({"frequency_penalty": -3}, "frequency-penalty is -3"),
    ({"no_repeat_ngram_size": -2}, "no-repeat-ngram-size is -2"),
    ({"logit_bias": {-4: 1.0}}, "a token id of logit-bias is -4"),
    ({"logit_bias": {"the": 1.0}}, "a token id of logit-bias is 'the'"),
    ({"logit_bias": {4: float("inf")}}, "logit-bias of token 4 is inf"),
    ({"logit_bias": [4]}, r"logit-bias is \[4\]; expected token ids with numbers"),
    ({"stop": [3]}, "stop has 3; expected strings, and token ids in stop_ids"),
    ({"stop": None}, "stop is None; expected a list of strings"),
    ({"stop": ""}, "stop has an empty string; expected strings of at least one character"),
    ({"stop": ["END", ""]}, "stop has an empty string"),
    ({"stop": {"END": 1}}, "stop is {'END': 1}; expected a list of strings"),
    ({"stop": b"END"}, "stop is b'END'; expected a list of strings"),
    ({"stop_ids": {3: 1}}, "stop-ids is {3: 1}; expected a list of token ids"),
    ({"stop_ids": [-1]}, "a token id of stop-ids is -1"),
    ({"stop_ids": 3}, "stop-ids is 3; expected a list of token ids"),
    ({"logprobs": 21}, r"logprobs is 21; expected 0 \(the chosen token only\) to 20"),
    ({"logprobs": -1}, "logprobs is -1"),
    ({"processors": ["none"]}, "processors has 'none'; expected callables"),
    (
        {"strategy": "nonsense"},
        "strategy 'nonsense' is not known; expected one of: auto, full, alternate, verify, lookup",
    ),
    ({"strategy": 3}, "strategy is 3; expected a name"),
    ({"strategy": ["full"]}, r"strategy is \['full'\]; expected a name"),
    ({"chain": -5}, "chain is -5; expected 1 to 15"),
    ({"chain": 0, "strategy": "verify"}, "chain is 0; expected 1 to 15 for strategy 'verify'"),
    ({"chain": 1.5}, "chain is 1.5; expected 1 to 15"),
    ({"chain": 1.0, "strategy": "verify"}, "chain is 1.0"),
    ({"chain": True}, "chain is True"),
    ({"chain": "2"}, "chain is '2'"),
    ({"chain": 5, "strategy": "auto"}, "chain is 5; expected 1 to 4 for strategy 'auto'"),
    ({"chain": 2, "strategy": "full"}, "strategy 'full' has no chain"),
    ({"min_confidence": 7}, "min-confidence is 7; expected 0"),
    ({"min_confidence": 1}, "min-confidence is 1; expected 0"),
    ({"min_confidence": float("nan")}, "min-confidence is nan"),
    ({"min_confidence": None}, "min-confidence is None"),
    ({"min_confidence": "high"}, "min-confidence is 'high'"),
    ({"min_confidence": 0.5, "strategy": "lookup"}, "strategy 'lookup' knows no confidence"),
    ({"max_new_token": 3}, "setting 'max_new_token' is not known; did you mean 'max_new_tokens'?"),
    ({"n_predict": 3}, "setting 'n_predict' is not known; did you mean 'max_new_tokens'?"),
    ({"repeat_penalty": 1.1}, "setting 'repeat_penalty' is not known; did you mean 'repetition_penalty'?"),
    ({"colour": 3}, "setting 'colour' is not known; expected some of: max_new_tokens"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=str)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationConfig(**settings)
    with pytest.raises(InputError, match=message):
        GenerationConfig().updated(**settings)


@pytest.mark.parametrize("settings", [{"logit_bias": {300: 1.0}}, {"stop_ids": [300]}], ids=str)
def test_ids_outside_the_vocabulary_are_refused(tiny_bundle: Path, settings: dict[str, Any]) -> None:
    model = recycle_onnx.load(tiny_bundle)
    with pytest.raises(InputError, match="token id 300, which is outside the vocabulary of 300"):
        model.generate("the cat", **settings)
    assert model.generate("the cat", max_new_tokens=2).tokens


def test_keywords_are_the_fields() -> None:
    fields = [field.name for field in dataclasses.fields(GenerationConfig)]
    assert list(Overrides.__annotations__) == [*fields, *ALIASES]
    with pytest.raises(TypeError, match="max_new_token"):
        GenerationConfig().updated(max_new_token=3)  # type: ignore[call-arg]


def test_max_tokens_is_another_name_of_max_new_tokens(tiny_bundle: Path) -> None:
    assert GenerationConfig(max_tokens=3) == GenerationConfig(max_new_tokens=3)  # type: ignore[call-arg]
    assert GenerationConfig(min_new_tokens=9).updated(max_tokens=3).min_new_tokens == 3
    model = recycle_onnx.load(tiny_bundle, threads=1)
    config = GenerationConfig(max_new_tokens=7, stop_ids=())
    assert len(model.generate("the cat", config, max_tokens=3).tokens) == 3
    shown = run("generate", tiny_bundle, "the cat", "--json", "--max-tokens", 3, "--threads", 1).stdout
    assert len(json.loads(shown)["tokens"]) == 3


def test_a_text_has_512_tokens_unless_it_is_to_go_on_to_the_contexts_end(tmp_path: Path) -> None:
    model = recycle_onnx.load(write_endless_bundle(tmp_path, context_length=600), threads=1)
    prompt = model.encode("the cat")
    assert len(model.generate(prompt).tokens) == 512
    to_the_end = model.generate(prompt, max_new_tokens=-1)
    assert (len(prompt) + len(to_the_end.tokens), to_the_end.finish_reason) == (600, "length")
    shown = run("generate", tmp_path / "bundle", "the cat", "--json", "-n", -1, "--threads", 1).stdout
    assert json.loads(shown)["tokens"] == to_the_end.tokens


def test_a_config_is_its_own(sample_model: Model) -> None:
    bias, stop = {5: 1.0}, ["."]
    config = GenerationConfig(logit_bias=bias, stop=stop)
    bias[6], stop[0] = 2.0, "!"
    assert (config.logit_bias, config.stop) == ({5: 1.0}, (".",))
    assert GenerationConfig(stop="END").stop == ("END",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_the_biases_of_a_config_cannot_be_changed() -> None:
    config: Any = GenerationConfig(logit_bias={5: 1.0})
    changes = (
        lambda bias: bias.update({5: 2.0}),
        lambda bias: bias.__setitem__(6, 1.0),
        lambda bias: bias.__delitem__(5),
        lambda bias: bias.setdefault(6, 1.0),
        lambda bias: bias.pop(5),
        lambda bias: bias.popitem(),
        lambda bias: bias.clear(),
        lambda bias: bias.__ior__({6: 1.0}),
    )
    for change in changes:
        with pytest.raises(TypeError, match="cannot be changed"):
            change(config.logit_bias)
    assert config.logit_bias == {5: 1.0}
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.updated(seed=0)):
        assert copied == config
        assert dataclasses.asdict(copied)["logit_bias"] == {5: 1.0}


def test_a_config_and_keywords_say_the_same(sample_model: Model) -> None:
    config = GenerationConfig(max_new_tokens=12, temperature=0.9, seed=4, repetition_penalty=1.2)
    expected = sample_model.generate(
        "The sun", max_new_tokens=12, temperature=0.9, seed=4, repetition_penalty=1.2
    ).tokens
    assert sample_model.generate("The sun", config).tokens == expected
    assert sample_model.generate("The sun", config, seed=5).tokens != expected
    assert sample_model.generate("The sun", config, seed=5).tokens != sample_model.generate("The sun").tokens


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "eos_token_id": [0, 7]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, GenerationConfig(stop_ids=())),
        ({"eos_token_id": 0, "bos_token_id": 0, "temperature": None}, GenerationConfig(stop_ids=[0])),
        (SAMPLED, GenerationConfig(temperature=0.7, top_k=20, top_p=0.8, min_p=0.1, stop_ids=[0, 7])),
        (SAMPLED | {"do_sample": False}, GenerationConfig(top_k=20, top_p=0.8, min_p=0.1, stop_ids=[0, 7])),
        ({"temperature": 0.7}, GenerationConfig(stop_ids=())),
        ({"do_sample": True, "num_beams": 4}, GenerationConfig(temperature=1.0, stop_ids=())),
        (
            {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "max_new_tokens": 9, "min_new_tokens": 2},
            GenerationConfig(
                repetition_penalty=1.1, no_repeat_ngram_size=3, max_new_tokens=9, min_new_tokens=2, stop_ids=()
            ),
        ),
    ],
    ids=str,
)
def test_defaults_are_read_as_transformers_writes_them(
    content: dict[str, Any], expected: GenerationConfig, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert read_defaults(tmp_path / "generation_config.json") == expected


def test_a_files_least_length_may_be_above_the_usual_limit(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"min_new_tokens": 700}))
    defaults = read_defaults(tmp_path / "generation_config.json")
    assert (defaults.min_new_tokens, defaults.max_new_tokens) == (700, 700)


def test_without_the_file_all_is_greedy(tmp_path: Path) -> None:
    assert read_defaults(tmp_path / "generation_config.json") == GenerationConfig(stop_ids=())


@pytest.fixture
def sampling_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = {"do_sample": True, "temperature": 1.3, "top_k": 40, "max_new_tokens": 7, "eos_token_id": None}
    (tmp_path / "bundle" / "generation_config.json").write_text(json.dumps(content))
    return tmp_path / "bundle"


def test_the_bundles_defaults_apply_where_nothing_else_is_said(sampling_bundle: Path, tiny_bundle: Path) -> None:
    model, plain = recycle_onnx.load(sampling_bundle), recycle_onnx.load(tiny_bundle)
    own = plain.generate("the cat", temperature=1.3, top_k=40, max_new_tokens=7, stop_ids=[]).tokens
    greedy = plain.generate("the cat", max_new_tokens=7, stop_ids=[]).tokens
    assert own != greedy
    assert model.generate("the cat").tokens == own
    assert model.generate("the cat", temperature=0.0).tokens == greedy
    assert model.generate("the cat", GenerationConfig(), max_new_tokens=7).tokens == greedy
    assert [*json.loads(run("generate", sampling_bundle, "the cat", "--json").stdout)["tokens"]] == own
    shown = run("generate", sampling_bundle, "the cat", "--json", "--temperature", 0)
    assert json.loads(shown.stdout)["tokens"] == greedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"do_sample": True, "temperature": -2}, ("temperature is -2",)),
        ({"top_p": 3}, ("top-p is 3",)),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, ("min-new-tokens is 9",)),
        ({"eos_token_id": "end"}, ("eos_token_id is 'end'",)),
    ],
    ids=str,
)
def test_a_default_out_of_range_names_the_file(
    content: dict[str, Any], words: tuple[str, ...], sampling_bundle: Path
) -> None:
    (sampling_bundle / "generation_config.json").write_text(json.dumps(content))
    assert_refused(run("generate", sampling_bundle, "the cat"), 2, "generation_config.json", *words)


def test_a_top_k_of_minus_one_is_none(sampling_bundle: Path) -> None:
    """As vLLM has it, and files on the hub."""
    content = {"do_sample": True, "top_k": -1, "eos_token_id": 0}
    (sampling_bundle / "generation_config.json").write_text(json.dumps(content))
    model = recycle_onnx.load(sampling_bundle)
    assert model.generation_config.top_k == 0
    assert len(model.generate("the cat", max_new_tokens=3, stop_ids=[]).tokens) == 3


def test_a_file_that_would_fail_every_run_is_not_exported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"top_p": 3, "eos_token_id": 0}))
    with pytest.raises(InputError, match=r"model/generation_config\.json: top-p is 3"):
        export(tmp_path / "model", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_command_line_has_every_control(tiny_bundle: Path) -> None:
    options = (
        "-n", 12, "--min-new-tokens", 3, "--temperature", 0.9, "--top-k", 30, "--top-p", 0.9, "--min-p", 0.01,
        "--repetition-penalty", 1.2, "--presence-penalty", 0.5, "--frequency-penalty", 0.25,
        "--no-repeat-ngram-size", 3, "--logit-bias", "5=2.5", "--logit-bias", "6=-inf", "--seed", 3, "--stop", "zzz",
        "--stop-ids", 0, "--stop-ids", 9, "--logprobs", 2, "--strategy", "verify", "--chain", 2,
    )  # fmt: skip
    shown = json.loads(run("generate", tiny_bundle, "the cat", *options, "--json").stdout)
    expected = recycle_onnx.load(tiny_bundle).generate(
        "the cat", max_new_tokens=12, min_new_tokens=3, temperature=0.9, top_k=30, top_p=0.9, min_p=0.01,
        repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.25, no_repeat_ngram_size=3,
        logit_bias={5: 2.5, 6: float("-inf")}, seed=3, stop=["zzz"], stop_ids=[0, 9], logprobs=2, strategy="verify",
        chain=2,
    )  # fmt: skip
    assert shown["tokens"] == expected.tokens
    assert [entry["top_logprobs"][0]["id"] for entry in shown["logprobs"]] == [
        entry["top_logprobs"][0]["id"] for entry in expected.logprobs or []
    ]


def test_a_new_limit_lowers_the_least_that_there_was() -> None:
    """A bundle's `min_new_tokens` is no reason to refuse a short answer that somebody asks for."""
    bundles = GenerationConfig(min_new_tokens=32)
    assert bundles.updated(max_new_tokens=8).min_new_tokens == 8
    assert bundles.updated(max_new_tokens=64).min_new_tokens == 32
    with pytest.raises(InputError, match="min-new-tokens is 32"):
        bundles.updated(max_new_tokens=8, min_new_tokens=32)
    with pytest.raises(InputError, match="max-new-tokens is 0"):
        bundles.updated(max_new_tokens=0)
