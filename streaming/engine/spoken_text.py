"""Which of a reply's tokens are spoken: all of them, or those before a marker that begins what only a program reads."""

from __future__ import annotations

from bisect import bisect_right


class SpokenText:
    """Takes the text of each token; knows how many leading tokens are to be spoken for certain.

    Text that may turn out to be the beginning of the marker waits until it is known. So does white space before the
    first word, lest a reply that is nothing but a tool call begin with the sound of a line break.
    """

    def __init__(self, marker: str | None) -> None:
        self._marker = marker
        self._text = ""
        self._ends: list[int] = []
        """Of each token in the text."""
        self._limit = 0
        self.is_over = False
        """The marker was found: nothing more is spoken."""

    @property
    def num_certain(self) -> int:
        """Leading tokens that are spoken, whatever follows."""
        if self._marker is None:
            return len(self._ends)
        return bisect_right(self._ends, self._limit) if self._limit else 0

    def push(self, text: str) -> None:
        """Take the text that one more token added, possibly none."""
        self._text += text
        self._ends.append(len(self._text))
        if self._marker is None or self.is_over:
            return
        found = self._text.find(self._marker, self._limit)
        self.is_over = found >= 0
        self._set_limit(found if self.is_over else len(self._text) - self._num_open(self._marker))

    def close(self) -> None:
        """No token follows: what might have become a marker did not."""
        if not self.is_over:
            self._set_limit(len(self._text))

    def _set_limit(self, limit: int) -> None:
        self._limit = limit if self._text[:limit].strip() else 0

    def _num_open(self, marker: str) -> int:
        """Characters at the end of the text that the marker may begin with."""
        longest = min(len(marker) - 1, len(self._text))
        return next((n for n in range(longest, 0, -1) if self._text.endswith(marker[:n])), 0)
