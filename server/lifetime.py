"""Lifetime: when a session ends by itself, and what the client is told of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.events import ErrorEvent, SessionFinished

if TYPE_CHECKING:
    from server.limits import Limits
    from server.outbox import Outbox

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is to be closed, once what waits has been sent."""

    code: int
    reason: str


@dataclass(slots=True)
class Lifetime:
    """Owned by the session."""

    limits: Limits
    outbox: Outbox
    began_ms: int
    close: Close | None = None
    is_finishing: bool = False
    """The client wants to end: no errors any more."""
    _heard_ms: int = 0
    _finished_ms: int | None = None
    _faults_ms: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._heard_ms = self.began_ms

    @property
    def is_finished(self) -> bool:
        return self._finished_ms is not None

    def note_message(self, now_ms: int) -> None:
        """The client has said something."""
        self._heard_ms = now_ms

    def note_fault(self, now_ms: int) -> None:
        """What the client said could not be read."""
        self._faults_ms.append(now_ms)
        while self._faults_ms[0] <= now_ms - self.limits.faults_ms:
            self._faults_ms.popleft()
        if len(self._faults_ms) >= self.limits.max_faults:
            self._faults_ms.clear()
            self.close = self.close or Close(1008, "too_many_errors")

    def finish(self, now_ms: int) -> None:
        """Everything is said."""
        self.outbox.put(SessionFinished())
        self._finished_ms = now_ms

    def wake_ms(self) -> int | None:
        if self.close is not None:
            return None
        times = [
            self.began_ms + self.limits.session_ms,
            self._heard_ms + self.limits.silence_ms,
        ]
        if self._finished_ms is not None:
            times.append(self._finished_ms + self.limits.finish_ms)
        return min(times)

    def tick(self, now_ms: int) -> None:
        limits = self.limits
        if self.close is not None:
            return
        if self._finished_ms is not None and now_ms >= self._finished_ms + limits.finish_ms:
            self.close = Close(1000, "")
        elif now_ms >= self.began_ms + limits.session_ms:
            minutes = limits.session_ms // MINUTE_MS
            self._expire(f"Your session hit the maximum duration of {minutes} minutes.")
        elif now_ms >= self._heard_ms + limits.silence_ms:
            minutes = limits.silence_ms // MINUTE_MS
            self._expire(f"Your session was without a message for {minutes} minutes.")

    def _expire(self, reason: str) -> None:
        if not self.is_finishing:
            self.outbox.put(ErrorEvent("session_expired", reason))
        self.close = Close(1001, reason)
