"""Every place that names the end of a text counts, and `inspect` says which one did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import recycle_onnx
from recycle_onnx.checkpoint.sources.gguf import convert
from recycle_onnx.errors import InputError
from recycle_onnx.export import export
from recycle_onnx.files import read_json, write_json
from recycle_onnx.script import Script
from recycle_onnx.stop_ids import known_ends, stop_ids
from recycle_onnx.tokenizer import load_tokenizer
from tests.helpers import tiny
from tests.helpers.command import run
from tests.helpers.gguf_writer import write_gguf

TURN, OTHER, REPOSITORY = "<turn-is-over>", "<stop>", "<reponame>"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }} "
    f"{TURN}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
Change = Callable[[Path], None]


def edit(name: str, **changes: Any) -> Change:
    return lambda folder: write_json(folder / name, {**read_json(folder / name), **changes})


def write(name: str, value: Any) -> Change:
    return lambda folder: write_json(folder / name, value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base that names no end anywhere, but has tokens that could be one."""
    folder = tiny.write_base(tmp_path / "model", tiny.tiny_config(vocab_size=320))
    text = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<begin>")
    (folder / "tokenizer.json").write_text(text)
    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_special_tokens([TURN, OTHER])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("config.json", "generation_config.json"):
        edit(name, eos_token_id=None)(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def add_token(text: str, special: bool = True) -> Change:
    def change(folder: Path) -> None:
        tokenizer = load_tokenizer(folder)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([text])
        tokenizer.save(str(folder / "tokenizer.json"))

    return change


PLACES: dict[str, tuple[Change, list[str]]] = {
    "generation_config.json eos_token_id": (edit("generation_config.json", eos_token_id=5), ["5"]),
    "config.json eos_token_id": (edit("config.json", eos_token_id=[5, 7]), ["5", "7"]),
    "tokenizer_config.json eos_token": (edit("tokenizer_config.json", eos_token=OTHER), [OTHER]),
    "special_tokens_map.json eos_token": (write("special_tokens_map.json", {"eos_token": {"content": OTHER}}), [OTHER]),
    "the chat template's end of turn": (edit("tokenizer_config.json", chat_template=TEMPLATE), [TURN]),
    "known to llama.cpp": (add_token(REPOSITORY), [REPOSITORY]),
}


@pytest.mark.parametrize("place", PLACES)
def test_one_place_is_enough(place: str, folder: Path, tmp_path: Path) -> None:
    change, tokens = PLACES[place]
    change(folder)
    tokenizer = load_tokenizer(folder)
    expected = [int(token) if token.isdigit() else tokenizer.token_to_id(token) for token in tokens]
    export(folder, tmp_path / "bundle")
    assert sorted(recycle_onnx.load(tmp_path / "bundle").stop_ids) == expected
    genai = read_json(tmp_path / "bundle" / "genai_config.json")["model"]["eos_token_id"]
    assert genai == (expected if len(expected) > 1 else expected[0])
    for path in (folder, tmp_path / "bundle"):
        ends = json.loads(run("inspect", path, "--json").stdout)["stop_ids"]
        assert [(end["id"], end["named_by"]) for end in ends] == [(token, [place]) for token in expected]


def test_a_model_that_names_none_has_none(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "bundle")
    assert recycle_onnx.load(tmp_path / "bundle").stop_ids == frozenset()


def test_all_places_are_taken_together_the_main_one_first(folder: Path) -> None:
    for change, _ in PLACES.values():
        change(folder)
    tokenizer = load_tokenizer(folder)
    named = stop_ids(folder, tokenizer)
    assert list(named) == [5, 7, *map(tokenizer.token_to_id, (OTHER, TURN, REPOSITORY))]
    assert named[5] == ["generation_config.json eos_token_id", "config.json eos_token_id"]
    shown = " ".join(run("inspect", folder).stdout.replace("│", " ").split())
    assert "ends at 5" in shown
    assert "the chat template's end of turn" in shown


def test_an_ordinary_word_of_the_same_text_ends_nothing(folder: Path) -> None:
    add_token("</s>", special=False)(folder)
    assert stop_ids(folder, load_tokenizer(folder)) == {}


def test_a_template_that_ends_a_turn_with_text_names_no_token(folder: Path) -> None:
    edit("tokenizer_config.json", chat_template=TEMPLATE.replace(TURN, "over."))(folder)
    assert stop_ids(folder, load_tokenizer(folder)) == {}


def test_a_token_that_the_model_lacks_ends_nothing(folder: Path, tmp_path: Path) -> None:
    edit("config.json", eos_token_id=5)(folder)
    for n in range(40):
        add_token(f"<extra {n}>")(folder)
    edit("tokenizer_config.json", eos_token="<extra 39>")(folder)
    export(folder, tmp_path / "bundle")
    assert recycle_onnx.load(tmp_path / "bundle").stop_ids == {5}


def test_the_end_of_a_part_of_an_answer_is_not_its_end() -> None:
    assert known_ends({"<|end|>": 1, "<|im_end|>": 2}) == [2, 1]
    assert known_ends({"<|end|>": 1, "<|return|>": 2, "<|call|>": 3}) == [2, 3]


def test_a_gguf_file_stops_where_llama_cpp_stops(folder: Path, tmp_path: Path) -> None:
    """By its keys, and by the texts of its tokens, whatever type they have."""
    edit("tokenizer_config.json", bos_token="<begin>", eos_token=OTHER)(folder)
    for text in (REPOSITORY, "<|im_end|>"):
        add_token(text)(folder)
    add_token("<|endoftext|>", special=False)(folder)
    tokenizer = load_tokenizer(folder)
    turn, other, repository, im_end, end = map(
        tokenizer.token_to_id, (TURN, OTHER, REPOSITORY, "<|im_end|>", "<|endoftext|>")
    )
    file = write_gguf(tmp_path / "model.gguf", folder, change=lambda writer: writer.add_eot_token_id(turn))
    (tmp_path / "converted").mkdir()
    convert(file, tmp_path / "converted")
    ids = read_json(tmp_path / "converted" / "generation_config.json")["eos_token_id"]
    assert ids == [other, turn, im_end, end, repository]
    named = stop_ids(tmp_path / "converted", load_tokenizer(tmp_path / "converted"))
    assert "GGUF eot_token_id" in named[turn]
    assert "GGUF eos_token_id" in named[other]
    assert list(named) == ids


def test_a_base_without_a_template_ends_its_own_text_at_all_of_them(folder: Path) -> None:
    edit("tokenizer_config.json", eos_token=OTHER)(folder)
    (turn,) = Script.of(folder, 1.0).turns
    assert turn.ends == {load_tokenizer(folder).token_to_id(OTHER)}


@pytest.mark.parametrize("value", ["2", 2.0, True, [[2]], {"id": 2}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_that_is_no_id_is_refused(name: str, value: Any, folder: Path) -> None:
    edit(name, eos_token_id=value)(folder)
    with pytest.raises(InputError, match=f"{name} eos_token_id is .*; expected a token's id"):
        stop_ids(folder, load_tokenizer(folder))
