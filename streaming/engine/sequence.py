"""One autoregressive stream, counted in tokens and pages, and the clock of the session it belongs to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np

from model.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    Positions = np.ndarray[tuple[int, int], np.dtype[np.int64]]
    PageTable = np.ndarray[tuple[int], np.dtype[np.int32]]

SAMPLES_PER_MS = 24


class Role(Enum):
    """The sub-model that a piece of work is for."""

    AUDIO = auto()
    VISION = auto()
    THINKER = auto()
    TALKER = auto()
    CODEC = auto()


class Phase(Enum):
    """ENCODE: media to rows. PREFILL: many known rows. DECODE: one new token per sequence, or one window of sound."""

    ENCODE = auto()
    PREFILL = auto()
    DECODE = auto()


class Stage(Enum):
    """What a session is doing, as far as urgency goes."""

    LISTENING = auto()
    WAITING = auto()
    """Its turn is committed and nothing has been heard of the reply."""
    PLAYING = auto()


@dataclass(slots=True)
class Pace:
    """When a session's work is due. Owned by its conversation, read by the scheduler; times in `now_ms`.

    While it listens, work is due when the next chunk is; a first packet is due now, longest waiting first; then work
    is due when the playout runs dry.
    """

    stage: Stage = Stage.LISTENING
    due_ms: float = 0.0
    """LISTENING: when the next input is expected. WAITING: since when. PLAYING: when the playout runs dry."""
    has_lead_limit: bool = False
    is_held: bool = False
    """Nothing of the reply is made: its listener does not take what is there."""
    num_delivered: int = 0
    """Samples of the reply that have left."""

    def listen(self, due_ms: float) -> None:
        self.stage, self.due_ms, self.has_lead_limit = Stage.LISTENING, due_ms, False
        self.is_held = False

    def wait(self, now_ms: float, *, speech: bool) -> None:
        self.stage, self.due_ms, self.has_lead_limit = Stage.WAITING, now_ms, speech
        self.is_held, self.num_delivered = False, 0

    def deliver(self, num_samples: int, now_ms: float) -> None:
        """Sound of the reply left: the playout starts with the first, or starts again after it ran dry."""
        is_first = self.stage is not Stage.PLAYING
        start = now_ms if is_first else max(self.due_ms, now_ms)
        self.stage, self.due_ms = Stage.PLAYING, start + num_samples / SAMPLES_PER_MS
        self.num_delivered += num_samples

    def report(self, num_played: int, now_ms: float) -> None:
        """The player says where it is; from there on it is taken to play without a pause."""
        if self.stage is Stage.PLAYING:
            waiting = self.num_delivered - min(max(0, num_played), self.num_delivered)
            self.due_ms = now_ms + waiting / SAMPLES_PER_MS

    def lateness_ms(self, now_ms: float) -> float:
        """How long a listener has been waiting for the first or the next sound."""
        waits = self.stage is not Stage.LISTENING and not self.is_held
        return max(0.0, now_ms - self.due_ms) if waits else 0.0

    def lead_ms(self, now_ms: float) -> float:
        """How far finished sound is ahead of playback."""
        return max(0.0, self.due_ms - now_ms) if self.stage is Stage.PLAYING else 0.0


@dataclass(slots=True, eq=False)
class Segment:
    """Rows of a prompt that are known but not computed: tokens, or an encoder's rows, which may still be missing."""

    positions: Positions
    """[3, n]"""
    token_ids: tuple[int, ...] = ()
    rows: Tensor | None = None
    """[n, H]: what an encoder made (Thinker) or what follows the Thinker (Talker); None while it is being made."""

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @property
    def is_ready(self) -> bool:
        return bool(self.token_ids) or self.rows is not None

    def part(self, start: int, stop: int) -> Segment:
        """Rows `start`…`stop`-1; the segment itself if that is all of it, so that rows still to come arrive in it."""
        if stop - start == self.length:
            return self
        rows = None if self.rows is None else self.rows[start:stop]
        return Segment(self.positions[:, start:stop], self.token_ids[start:stop], rows)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start`…`stop`-1 of a segment."""

    segment: Segment
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class DecodeInput:
    """The one row that a decode step feeds."""

    token_id: int
    """Thinker: the text token. Talker: the codec token before."""
    row_slot: int
    """Thinker: where its reply row is stored. Talker: where the row it speaks is found."""
    position: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One growing stream of Thinker or Talker. Invariant: num_computed + num_scheduled ≤ len(pages) · page_size."""

    seq_id: int
    session_id: str
    role: Role
    lane: int
    pace: Pace
    pending: deque[Segment] = field(default_factory=deque)
    decode: DecodeInput | None = None
    wants_token: bool = False
    """Draw a token after the last pending row."""
    num_computed: int = 0
    num_scheduled: int = 0
    pages: list[int] = field(default_factory=list)
    sampling: Sampling = GREEDY
    num_drawn: int = 0
    _head_offset: int = 0
    """Rows of the first pending segment that are computed."""
    _run_len: int = 0
    """Leading pages known to be one ascending run."""
    _table: PageTable = field(default_factory=lambda: np.zeros(0, np.int32))
    _num_tabled: int = 0

    @property
    def length(self) -> int:
        """Rows computed and pending."""
        return self.num_computed + self.num_pending

    @property
    def num_pending(self) -> int:
        return sum(s.length for s in self.pending) - self._head_offset

    def num_ready(self, limit: int) -> int:
        """Leading pending rows that can be computed now, at most `limit`."""
        num = -self._head_offset
        for segment in self.pending:
            if not segment.is_ready or num >= limit:
                break
            num += segment.length
        return max(0, min(num, limit))

    def append(self, segment: Segment) -> None:
        if segment.length:
            self.pending.append(segment)

    def next_pieces(self, num: int) -> Iterator[Piece]:
        """The next `num` pending rows, as pieces of their segments."""
        start = self._head_offset
        for segment in self.pending:
            if num <= 0:
                return
            stop = min(segment.length, start + num)
            yield Piece(segment, start, stop)
            num -= stop - start
            start = 0

    def advance(self, num: int) -> None:
        """Record that the scheduled `num` rows are computed."""
        assert num == self.num_scheduled
        self.num_computed += num
        self.num_scheduled = 0
        if not self.pending:
            self.decode = None
            return
        self._head_offset += num
        while self.pending and self._head_offset >= self.pending[0].length:
            self._head_offset -= self.pending.popleft().length

    def first_slot(self, num_slots: int, page_size: int) -> int | None:
        """Where the first `num_slots` rows lie if their pages are one ascending run, else None."""
        pages = self.pages
        while self._run_len < len(pages) and pages[self._run_len] == pages[0] + self._run_len:
            self._run_len += 1
        return pages[0] * page_size if num_slots <= self._run_len * page_size else None

    def page_table(self) -> PageTable:
        """The pages as an array, kept up to date instead of made anew at every step."""
        if len(self._table) < len(self.pages):
            table = np.zeros(max(64, 2 * len(self.pages)), np.int32)
            table[: self._num_tabled] = self._table[: self._num_tabled]
            self._table = table
        if self._num_tabled < len(self.pages):
            self._table[self._num_tabled : len(self.pages)] = self.pages[self._num_tabled :]
            self._num_tabled = len(self.pages)
        return self._table[: len(self.pages)]

    def skip(self, num: int) -> None:
        """The first `num` pending rows are in the pages already: another session has computed them."""
        self.num_scheduled = num
        self.advance(num)

    def forget_pending(self) -> None:
        self.pending.clear()
        self._head_offset = 0
        self.decode = None
        self.wants_token = False

    def cut(self, length: int, page_size: int) -> list[int]:
        """Forget everything beyond the first `length` rows; return the pages that are no longer needed."""
        kept = self._pending_head(length - self.num_computed)
        self.forget_pending()
        self.pending.extend(kept)
        self.num_computed = min(self.num_computed, length)
        num_kept = -(-self.num_computed // page_size)
        freed, self.pages = self.pages[num_kept:], self.pages[:num_kept]
        self._run_len = min(self._run_len, num_kept)
        self._num_tabled = min(self._num_tabled, num_kept)
        return freed

    def _pending_head(self, num: int) -> list[Segment]:
        """The first `num` pending rows as segments of their own."""
        return [p.segment.part(p.start, p.stop) for p in self.next_pieces(num)]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work that belongs to no sequence: media to encode, or a window of sound. Jobs of one session run in order."""

    session_id: str
    role: Role
    group: tuple[object, ...]
    """Jobs of equal role and group may share a call."""
    size: int
    """Mel frames, patches or codec tokens: what a call is bounded by."""
    content: object
    """Opaque to the scheduler."""
