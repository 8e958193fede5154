"""The rows at the bottom of a terminal that are drawn anew, below all that was printed for good.

The cursor stays on the last of them, a line of figures. So long as the window keeps its size, the rows are erased by
going up from there. Some terminals wrap what they show when the window changes its size, others cut it, and none says
which: so after that nobody goes up, the rows stay as they are, and only the line of figures is drawn elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

ERASE_ROW = ((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2))
UP = ((ControlType.CURSOR_UP, 1),)


class Region:
    """The rows that are drawn now, and the window's size when they were."""

    def __init__(self, console: Console) -> None:
        self._console, self._size = console, console.size
        self._rows = self._status = 0

    @classmethod
    @contextmanager
    def open(cls, console: Console) -> Iterator[Self]:
        """Hide the cursor within the block, and erase what is drawn at its end."""
        region = cls(console)
        console.show_cursor(False)
        try:
            yield region
        finally:
            if region.resized():
                region.leave()
            region.erase()
            console.show_cursor(True)

    def rows(self, content: RenderableType) -> list[list[Segment]]:
        """Return the rows that something takes at the window's width."""
        return self._console.render_lines(content, self._console.options, pad=False)

    def resized(self) -> bool:
        """Tell whether the window has another size than when this was last asked."""
        before, self._size = self._size, self._console.size
        return before != self._size

    def draw(self, rows: Sequence[list[Segment]], status: str) -> None:
        """Draw rows and the line of figures in place of what is there."""
        line = Text(status, style="dim")
        line.truncate(self._console.width - 1)  # behind the last column the cursor would be on the next row
        with self._console:  # writes all at once
            self.erase()
            self._console.print(Segments([segment for row in rows for segment in (*row, Segment.line())]), end="")
            self._console.print(line, end="")
        self._rows, self._status = len(rows) + 1, line.cell_len

    def erase(self) -> None:
        """Erase what is drawn."""
        self._erase(self._rows)

    def leave(self) -> None:
        """Let the rows stay, after the window has changed its size; the line of figures goes."""
        width = max(1, self._console.width)
        self._erase(min(self._rows, 1) * max(1, -(-self._status // width)))

    def _erase(self, rows: int) -> None:
        if rows:
            self._console.control(Control(*ERASE_ROW, *(UP + ERASE_ROW) * (rows - 1)))
        self._rows = self._status = 0
