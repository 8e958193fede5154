"""What both halves have read of one text, and how far that is true."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadTokens:
    """The tokens in the cache rows of both halves: to shorten a list is to forget its rows.

    Row p of the full model stands for token p, row p of the module for token p + 1 with the full model's hidden state
    at p. So the module has read one token less than there are, or fewer where nobody asked it.
    """

    full: list[int] = field(default_factory=list)
    module: list[int] = field(default_factory=list)
    true_rows: int = 0
    """The module's rows from here on stand on its own guesses, or come from a reading that was broken off."""
    unread: int = 0
    """The module's rows before this one were left out: nothing that is read behind them looks back so far."""

    def keep(self, count: int) -> None:
        """Forget all but the first `count` rows of each half."""
        del self.full[count:], self.module[count:]
        self.true_rows, self.unread = min(self.true_rows, count), min(self.unread, count)

    def keep_scored(self, count: int) -> None:
        """Forget all but the first `count` tokens of a text that is only read.

        Row p of the module has read token p + 1, so it keeps one row less than there are tokens.
        """
        del self.full[count:], self.module[max(0, count - 1) :]
        self.true_rows = min(self.true_rows, len(self.module))

    def forget_guesses(self) -> None:
        """Forget the module's rows that are not true."""
        del self.module[self.true_rows :]

    def module_is_true(self) -> None:
        """Say that all the module's rows stand on the text."""
        self.true_rows = len(self.module)
