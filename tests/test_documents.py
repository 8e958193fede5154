"""Text files to documents, whatever they are wrapped in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recycle_onnx.documents import SEPARATOR, read_documents
from recycle_onnx.errors import InputError

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=30), max_size=6)


@given(documents=TEXTS)
def test_text_and_json_lines_plain_and_gzipped_hold_the_same(
    documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    text = SEPARATOR.join(documents).encode()
    lines = "\n".join(json.dumps({"text": document}) for document in documents).encode()
    for name, data in (("a.txt", text), ("a.jsonl", lines)):
        (folder / name).write_bytes(data)
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    expected = [document.strip() for document in documents if document.strip()]
    for name in ("a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"):
        if expected:
            assert list(read_documents([folder / name])) == expected
        else:
            with pytest.raises(InputError, match="no text"):
                list(read_documents([folder / name]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt.gz", b"not gzip", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"words " * 99, mtime=0)[:30], "not a whole gzip file"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "typo"}', r"line 2: no text in 'text' \(found: txt\).*--field"),
        ("a.jsonl", b"[1]", "line 1: no text"),
        ("a.jsonl", b"nonsense", "line 1: not JSON"),
        ("a.txt", b"", "no text"),
    ],
)
def test_bad_files_are_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_documents([tmp_path / name]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such text file"):
        list(read_documents([tmp_path / "none.txt"]))
