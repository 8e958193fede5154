"""Streaming text: whole characters, leading spaces, stop strings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.text import LONG_TEXT, StopStrings, TextStream, count, encode

SAMPLE = Path(__file__).parents[2] / "samples" / "stories" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SAMPLE))


def pieces(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, tokenizer.encode(prompt).ids)
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(text=st.text(min_size=1, max_size=40))
def test_the_pieces_of_any_text_make_the_text(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(SAMPLE))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(tokenizer, "A cat", ids)) == tokenizer.decode(ids)


LETTERS = "▁abc."
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def byte_fallback() -> Tokenizer:
    """A tokenizer like Llama's: a few words, and for everything else a token a byte."""
    words = {word: 256 + place for place, word in enumerate(("<unk>", *LETTERS, "▁a", "ab"))}
    model = models.BPE({**BYTES, **words}, [("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@given(text=st.text(st.sampled_from("ab c.你好世界é🙂❤️\u0301"), max_size=50), data=st.data())
def test_bytes_that_are_tokens_make_the_text_too(text: str, data: st.DataObject) -> None:
    """Runs of characters far longer than the context that is decoded along, before and after the prompt's end."""
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text).ids
    ends = [end for end in range(1, len(ids) + 1) if "\ufffd" not in tokenizer.decode(ids[:end])]
    end = data.draw(st.sampled_from(ends or [0]))
    stream = TextStream(tokenizer, ids[:end])
    shown = "".join([*map(stream.push, ids[end:]), stream.flush()])
    assert tokenizer.decode(ids[:end]) + shown == text


def test_a_byte_that_is_no_character_spoils_no_others() -> None:
    tokenizer = byte_fallback()
    shown = pieces(tokenizer, "b", [*"你".encode(), 0xFF, *tokenizer.encode("a").ids, *"好".encode()])
    assert "".join(shown) == "你\ufffd a好"
    assert shown[2] == "你"


def test_a_long_text_has_the_tokens_of_any_other(tokenizer: Tokenizer) -> None:
    text = "The cat sat. " * 2000
    assert len(text) > LONG_TEXT
    for special in (False, True):
        assert encode(tokenizer, text, special) == tokenizer.encode(text, add_special_tokens=special).ids
        assert encode(tokenizer, text, special, context=4000) == encode(tokenizer, text, special)


def test_of_a_text_that_is_far_too_long_the_beginning_is_read(tokenizer: Tokenizer) -> None:
    text = "The cat sat. " * 2000
    whole, found = encode(tokenizer, text), encode(tokenizer, text, context=100)
    assert 100 < len(found) < len(whole) / 5
    assert found == whole[: len(found)]
    assert count(found, 100) == f"at least {len(found)} tokens"
    blanks = " " * 5000 + "a"  # many characters, perhaps few tokens: then all of them count
    assert encode(tokenizer, blanks, context=2000) == encode(tokenizer, blanks)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(InputError, match=r"'\\ud800' as character 1, half of one"):
        encode(byte_fallback(), "a\ud800b")


def test_a_character_of_several_tokens_comes_with_its_last_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids
    assert len(ids) > 1
    assert pieces(tokenizer, "A cat", ids) == [""] * (len(ids) - 1) + ["🙂", ""]


def test_a_character_cut_by_the_end_is_shown_as_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids[:-1]
    assert set("".join(pieces(tokenizer, "A cat", ids))) == {"\ufffd"}


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_a_replacement_character_that_the_model_writes_comes_at_once(kind: str, tokenizer: Tokenizer) -> None:
    made = tokenizer if kind == "byte-level" else byte_fallback()
    ids = made.encode("\ufffd" * 20, add_special_tokens=False).ids
    stream = TextStream(made, ids)
    shown = [stream.push(token) for token in ids * 3]
    assert "".join(shown).count("\ufffd") == 60
    longest_wait = max(map(len, "".join("x" if piece else "." for piece in shown).split("x")))
    assert longest_wait < 3
    assert stream.flush() == ""


def test_bytes_that_can_become_no_character_come_at_once_and_the_first_ones_of_a_character_wait() -> None:
    stream = TextStream(byte_fallback(), [])
    word = byte_fallback().token_to_id("ab")
    shown = [stream.push(token) for token in (0xFF, 0x80, 0xE4, 0xBD, word)]
    assert shown == ["\ufffd", "\ufffd", "", "", "\ufffd\ufffdab"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "A cat", [0]) == ["", ""]


def test_text_before_a_stop_string_is_given_and_the_string_is_not() -> None:
    stops = StopStrings(["END"])
    shown = [stops.push(piece) for piece in ("one E", "N", "D two")]
    assert ("".join(shown), stops.reached) == ("one ", True)


def test_withheld_text_is_given_when_it_turns_out_to_be_no_stop_string() -> None:
    stops = StopStrings(["END"])
    assert [stops.push("E"), stops.push("N"), stops.push("t")] == ["", "", "ENt"]
    assert [stops.push("E"), stops.flush()] == ["", "E"]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stop_strings_cut_where_the_first_one_begins(text: str, strings: list[str], size: int) -> None:
    stops = StopStrings(strings)
    shown = ""
    for start in range(0, len(text), size):
        shown += stops.push(text[start : start + size])
        if stops.reached:
            break
    shown += stops.flush()
    ends = [text.find(string) + len(string) for string in strings if string in text]
    if not ends:
        assert shown == text
    else:
        assert stops.reached
        assert text.startswith(shown)
        assert not any(string in shown for string in strings)
