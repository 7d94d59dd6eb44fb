"""The order of a video with sound: within two seconds first the frame pairs, then the audio rows (spec 4.1, 4.3).

Pairs and audio blocks may arrive in any order relative to each other; what leaves is always

    [pairs of chunk 0] [audio of chunk 0] [pairs of chunk 1] [audio of chunk 1] …

and every item leaves as soon as the order allows it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PairT = TypeVar("PairT")
AudioT = TypeVar("AudioT")


@dataclass(slots=True)
class Interleaver(Generic[PairT, AudioT]):
    """Holds back what is early. Items are opaque; only their chunk number matters.

    Audio of a chunk waits until no further pair of that chunk can come: when a pair of a later chunk has arrived,
    when all `pairs_per_chunk` are there, or when the caller says so (`end_pairs`). Pairs wait for the audio of the
    chunks before theirs.
    """

    pairs_per_chunk: int
    chunk: int = 0
    _pairs: deque[tuple[int, PairT]] = field(default_factory=deque)
    _audio: deque[AudioT] = field(default_factory=deque)
    _num_pairs_released: int = 0
    _pairs_complete_before: int = 0
    """Every chunk below this one has all the pairs it will ever have."""

    def add_pair(self, chunk: int, pair: PairT) -> list[PairT | AudioT]:
        """Take the next pair of `chunk`; return what may leave now.

        Raises:
            ValueError: the audio of that chunk has already left, or pairs came out of order.
        """
        latest = self._pairs[-1][0] if self._pairs else self.chunk
        if chunk < max(latest, self._pairs_complete_before):
            raise ValueError(f"frame pair of chunk {chunk} came after chunk {latest} was complete")
        self._pairs.append((chunk, pair))
        self._pairs_complete_before = max(self._pairs_complete_before, chunk)
        return self._release()

    def add_audio(self, rows: AudioT) -> list[PairT | AudioT]:
        """Take the audio of the next chunk (only the last may be partial); return what may leave now."""
        self._audio.append(rows)
        return self._release()

    def end_pairs(self, before_chunk: int) -> list[PairT | AudioT]:
        """Say that chunks below `before_chunk` get no further pair."""
        self._pairs_complete_before = max(self._pairs_complete_before, before_chunk)
        return self._release()

    def close(self) -> list[PairT | AudioT]:
        """No further input: return everything that is left, in order."""
        left: list[PairT | AudioT] = []
        while self._pairs or self._audio:
            self._pairs_complete_before = self.chunk + 1
            left += self._release()
            if not self._audio:
                left += [pair for _, pair in self._pairs]
                self._pairs.clear()
        return left

    def _release(self) -> list[PairT | AudioT]:
        ready: list[PairT | AudioT] = []
        while True:
            while self._pairs and self._pairs[0][0] == self.chunk:
                ready.append(self._pairs.popleft()[1])
                self._num_pairs_released += 1
            has_all_pairs = (
                self._pairs_complete_before > self.chunk
                or self._num_pairs_released >= self.pairs_per_chunk
            )
            if not (self._audio and has_all_pairs):
                return ready
            ready.append(self._audio.popleft())
            self.chunk += 1
            self._num_pairs_released = 0
