"""Which tokens end a text, and which place says so of each.

Files name them in several places, and seldom all in one: generation_config.json what `generate` of transformers stops
at, tokenizer_config.json the end of a text, the chat template the end of a turn. A model stopped at too few goes on
into turns that it invents, so all of them count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.files import read_json
from recycle_onnx.provenance import read_source
from recycle_onnx.runtime.chat_template import PLAIN, ChatTemplate
from recycle_onnx.tokenizer import special_token

Named = dict[int, list[str]]
"""Token ids, the main one first, and the places that name each."""
KNOWN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip
"""Tokens that end every text of a model that has them, by their text, as llama.cpp knows them; the last two lines are
those of code models, which begin another file with them."""
CHANNELS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""A vocabulary that has both of one of these ends a part of an answer with `<|end|>`, not the answer."""


def stop_ids(folder: Path, tokenizer: Tokenizer) -> Named:
    """Return token ids that end a text of the model in `folder`, and the places that name each.

    Any whole number that configs name is taken: whether the model has such tokens is for the caller to check.

    Raises:
        InputError: a place names something else.
    """
    named: Named = {}
    for place, ids in _places(folder, tokenizer):
        for token in ids:
            if type(token) is not int:
                raise InputError(f"{folder}: {place} is {token!r:.100}; expected a token's id")
            places = named.setdefault(token, [])
            if place not in places:
                places.append(place)
    return named


def describe_ends(named: Named, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return plain values, each token with its text: what a bundle records, and `inspect` prints."""
    return [{"id": token, "token": tokenizer.id_to_token(token), "named_by": places} for token, places in named.items()]


def known_ends(ids: dict[str, int]) -> list[int]:
    """Return ids of `KNOWN` tokens in a vocabulary, its ids by text."""
    within_answers = {"<|end|>"} if any(both <= ids.keys() for both in CHANNELS) else set()
    return [ids[text] for text in KNOWN if text in ids and text not in within_answers]


def _places(folder: Path, tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    for name in ("generation_config.json", "config.json"):
        yield f"{name} eos_token_id", _as_list(_config(folder / name).get("eos_token_id"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        text = special_token(folder / name, "eos_token")
        token = None if text is None else tokenizer.token_to_id(text)
        yield f"{name} eos_token", _as_list(token)
    special = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    known = known_ends(special)
    turn = _end_of_turn(folder, tokenizer, set(special.values()))
    yield (
        "the chat template's end of turn",
        [] if turn == special.get("<|end|>") and turn not in known else _as_list(turn),
    )
    for name, token in (read_source(folder) or {}).get("stop_ids", {}).items():
        yield name, _as_list(token)
    yield "known to llama.cpp", known


def _end_of_turn(folder: Path, tokenizer: Tokenizer, special: set[int]) -> int | None:
    """Return the special token that stands behind an answer; None without a template that can be read here."""
    with suppress(InputError):  # a broken one, or jinja2 is not installed: whoever chats is told
        template = ChatTemplate.find(folder)
        frames = None if template.name == PLAIN else template.frames("user", "assistant", "user")
        for token in tokenizer.encode(frames[-1], add_special_tokens=False).ids if frames else ():
            if token in special:
                return int(token)
            if tokenizer.decode([token]).strip():
                return None
    return None


def _config(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]
