"""Sentences and lines of the documents are short, and are counted rightly."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

MEASURED = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "measure_prose.py"))


def test_sentences_and_lines_are_short() -> None:
    assert MEASURED["complaints"]() == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One.\nTwo two. `Three`\n", ["One.", "Two two.", "`Three`"]),
        ("# Heading\n\n- an item\n  of two lines\n- [another](page.md) one\n", ["an item of two lines", "another one"]),
        ("It costs 1.1 B.\n\n    code. More code.\n\n```\nA. B.\n```\n\n| a. B. | c |\n", ["It costs 1.1 B."]),
    ],
)
def test_sentences_are_those_of_paragraphs_and_items(text: str, sentences: list[str]) -> None:
    assert [part for block in MEASURED["blocks"](text) for part in MEASURED["SENTENCE_END"].split(block)] == sentences


def test_rows_of_tables_and_single_words_may_be_long() -> None:
    assert MEASURED["too_long"]("word " * 21)
    assert MEASURED["too_long"](f"- {'word ' * 21}")
    assert not MEASURED["too_long"](f"| {'word ' * 30} |")
    assert not MEASURED["too_long"](f"- {'w' * 120}")
