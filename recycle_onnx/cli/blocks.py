"""Where a text that is still being written may be cut, so that no word, paragraph or code block is torn."""

from __future__ import annotations

import re

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^`]*$")
"""The line that begins or ends a block of code in markdown (CommonMark 4.5)."""
LONGEST_WORD = 24
"""Characters that a word is waited for; scripts without spaces are shown as they come."""


def last_words(text: str) -> int:
    """Return the length of the text without the word at its end, which may go on."""
    end = max(text.rfind(space) for space in " \n\t") + 1
    return end if len(text) - end <= LONGEST_WORD else len(text)


def whole_blocks(text: str) -> int:
    """Return the length of the paragraphs, lists and code blocks at the beginning that nothing can change any more.

    An empty line ends one, unless what follows is indented, and so may belong to it.
    """
    whole = position = 0
    fence, empty = "", False
    for line in text.splitlines(keepends=True):
        if empty and line.strip() and not line[0].isspace():
            whole = position
        fence = _fence_after(fence, line)
        empty = not fence and not line.strip() and line.endswith("\n")
        position += len(line)
    return whole


def open_fence(text: str) -> str:
    """Return the line that began the code block in which the text ends; nothing if it ends in none."""
    fence = ""
    for line in text.splitlines():
        fence = _fence_after(fence, line)
    return f"{fence}\n" if fence else ""


def split(text: str) -> int:
    """Return the length of a part to print of a block that is too tall: whole lines, or else whole words.

    Nothing (0) of a single word.
    """
    return text.rstrip("\n").rfind("\n") + 1 or text.rstrip().rfind(" ") + 1


def _fence_after(fence: str, line: str) -> str:
    """Return the fence that is open behind a line, if `fence` was before it."""
    mark = FENCE.match(line.rstrip("\r\n"))
    if mark is None:
        return fence
    if not fence:
        return line.strip()
    opening = len(fence) - len(fence.lstrip(fence[0]))
    closes = line.strip() == mark[1] and mark[1][0] == fence[0] and len(mark[1]) >= opening
    return "" if closes else fence
