"""Count what makes a page hard to read: long sentences and long lines.

    python docs/measure_prose.py            # a line a page, the hardest first
    python docs/measure_prose.py --check    # say what is too long, and end with 1 if anything is
    python docs/measure_prose.py --longest 5

Sentences are those of paragraphs and list items: code, tables and headings are left out. A sentence ends at a full
stop, question mark or exclamation mark before a space, and where its paragraph or item ends.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_WORDS = 20
"""Words a sentence that a page may have on average."""
MOST_COLUMNS = 100
ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
NO_PROSE = re.compile(r"\s*(?:\||#|<!--|!\[|---)")


@dataclass(frozen=True)
class Page:
    """A document with its sentences, and the numbers of its lines that are too long."""

    name: str
    sentences: tuple[str, ...]
    long_lines: tuple[int, ...]

    @property
    def words(self) -> float:
        """Words a sentence."""
        return sum(len(sentence.split()) for sentence in self.sentences) / max(len(self.sentences), 1)

    def longest(self, count: int) -> list[str]:
        """Return the sentences with the most words."""
        return sorted(self.sentences, key=lambda sentence: -len(sentence.split()))[:count]


def pages() -> list[Page]:
    """Every document that is read by strangers: those at the top of the repository but the changes, and docs/."""
    paths = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
    return [measure(path) for path in paths if path.name != "CHANGELOG.md"]


def measure(path: Path) -> Page:
    """Read one page."""
    text = path.read_text(encoding="utf-8")
    sentences = [sentence for block in blocks(text) for sentence in SENTENCE_END.split(block) if sentence.strip()]
    lines = [number for number, line in enumerate(text.splitlines(), 1) if too_long(line)]
    return Page(path.relative_to(ROOT).as_posix(), tuple(sentences), tuple(lines))


def too_long(line: str) -> bool:
    """Whether a line is beyond the columns and could be broken: no row of a table, no single long word."""
    words = ITEM.sub("", line, count=1).split()
    return len(line) > MOST_COLUMNS and not line.startswith("|") and len(words) > 1


def blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs and list items of a page, each as one line, links as their text."""
    block: list[str] = []
    fenced, item, after_blank = False, False, True
    for line in (*text.splitlines(), ""):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        code = fenced or (line.startswith("    ") and after_blank and not item)
        prose = bool(line.strip()) and not code and not NO_PROSE.match(line) and "```" not in line
        starts_item = prose and ITEM.match(line) is not None
        if block and (starts_item or not prose):
            yield LINK.sub(r"\1", " ".join(block))
            block = []
        if prose:
            block.append(ITEM.sub("", line, count=1) if starts_item else line.strip())
            item = starts_item or (item and line.startswith(" "))
        after_blank = not line.strip() or (code and after_blank)


def complaints() -> list[str]:
    """List what is too long, one line each."""
    told = []
    for page in pages():
        if page.words > MOST_WORDS:
            told.append(f"{page.name}: {page.words:.1f} words a sentence; expected {MOST_WORDS} at most")
        told += [f"{page.name}:{number}: more than {MOST_COLUMNS} columns" for number in page.long_lines]
    return told


def main() -> None:
    """Print the table, or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is too long")
    parser.add_argument("--longest", type=int, default=0, metavar="N", help="show the N longest sentences of a page")
    parser.add_argument("page", nargs="*", help="only pages whose name has one of these")
    asked = parser.parse_args()
    if asked.check:
        sys.exit("\n".join(complaints()) or 0)
    print("words/sentence  sentences  over 30  long lines  page")
    for page in sorted(pages(), key=lambda page: -page.words):
        if asked.page and not any(part in page.name for part in asked.page):
            continue
        over = sum(len(sentence.split()) > 30 for sentence in page.sentences)
        print(f"{page.words:14.1f} {len(page.sentences):10} {over:8} {len(page.long_lines):11}  {page.name}")
        for sentence in page.longest(asked.longest):
            print(f"    {len(sentence.split())}: {sentence}")


if __name__ == "__main__":
    main()
