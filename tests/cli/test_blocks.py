"""Where a text that is still being written is cut."""

from __future__ import annotations

import pytest

from recycle_onnx.cli.blocks import LONGEST_WORD, last_words, open_fence, split, whole_blocks

CODE = "```python\na = 1\n\nb = 2\n```\n"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("The sky is bl", "The sky is "),
        ("The sky is ", "The sky is "),
        ("The sky\nis", "The sky\n"),
        ("blue", ""),
        ("天空是蓝色的" * 5, "天空是蓝色的" * 5),  # no spaces: nobody waits for the end of such a word
    ],
)
def test_a_word_is_shown_when_it_is_whole(text: str, whole: str) -> None:
    assert text[: last_words(text)] == whole
    assert len(whole) >= len(text) - LONGEST_WORD


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One.", ""),
        ("One.\n", ""),
        ("One.\n\n", ""),  # what follows may be indented, and belong to it
        ("One.\n\nT", "One.\n\n"),
        ("One.\n\nTwo.\n\nThree.", "One.\n\nTwo.\n\n"),
        ("- a\n- b\n\n  more of b", ""),
        ("- a\n- b\n\n  more of b\n\nNext", "- a\n- b\n\n  more of b\n\n"),
        (CODE, ""),
        ("```\na\n\nb", ""),
        (CODE + "\nText", CODE + "\n"),
        ("~~~\n```\n\n~~~\n\nText", "~~~\n```\n\n~~~\n\n"),
        ("````\n```\n\nb\n", ""),
    ],
)
def test_a_block_is_whole_when_nothing_can_change_it(text: str, whole: str) -> None:
    assert text[: whole_blocks(text)] == whole


@pytest.mark.parametrize(
    ("text", "fence"),
    [
        ("", ""),
        (CODE, ""),
        ("Text\n```python\na = 1\n", "```python\n"),
        ("```python\na = 1\n``` not the end", "```python\n"),
        (CODE + "~~~~\n~~~\n", "~~~~\n"),
        ("an `inline` one", ""),
    ],
)
def test_the_code_block_in_which_a_text_ends_is_known(text: str, fence: str) -> None:
    assert open_fence(text) == fence


@pytest.mark.parametrize(
    ("text", "first"),
    [("a\nb\nc d", "a\nb\n"), ("a\nb\nc\n", "a\nb\n"), ("one two three", "one two "), ("one", ""), ("one\n", "")],
)
def test_a_tall_block_is_cut_between_lines_or_words(text: str, first: str) -> None:
    assert text[: split(text)] == first
