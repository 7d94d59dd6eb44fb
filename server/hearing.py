"""Speech detection for all sessions: one helper thread, and its answers back in the event loop.

Answers come in bursts, one per session of a batch, so the loop is woken once for a burst and not once for each.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from streaming.media import SAMPLE_BYTES
from streaming.silero import SpeechThread
from streaming.vad import VadSettings

if TYPE_CHECKING:
    import asyncio

    from streaming.silero import SpeechModel, SpeechProgress


class Listener(Protocol):
    """Who is told. Must not raise."""

    def receive_speech(self, progress: SpeechProgress) -> None: ...


class Hearing:
    """The event loop's side of the thread. All methods belong to the loop."""

    def __init__(self, model: SpeechModel, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = SpeechThread(model, self._deliver)
        self._ears: dict[str, _Ear] = {}
        self._answers: deque[tuple[str, SpeechProgress]] = deque()
        self._lock = threading.Lock()
        self._is_woken = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()

    def hear(
        self, session_id: str, listener: Listener, items: list[bytes | VadSettings | int]
    ) -> None:
        """Pass on what a session wants heard, in order; its first settings begin it."""
        for item in items:
            ear = self._ears.get(session_id)
            if isinstance(item, VadSettings):
                if ear is None:
                    self._ears[session_id] = _Ear(listener)
                    self._thread.open(session_id, item)
                else:
                    self._thread.configure(session_id, item)
            elif ear is None:
                continue
            elif isinstance(item, int):
                self._thread.end_turn(session_id, item)
            else:
                ear.pushed_samples += len(item) // SAMPLE_BYTES
                self._thread.push(session_id, item)

    def close(self, session_id: str) -> None:
        if self._ears.pop(session_id, None) is not None:
            self._thread.close(session_id)

    def backlog_bytes(self, session_id: str) -> int:
        """What a session has said and nobody has judged."""
        ear = self._ears.get(session_id)
        return 0 if ear is None else SAMPLE_BYTES * (ear.pushed_samples - ear.judged_samples)

    def longest_backlog_samples(self) -> int:
        return max((e.pushed_samples - e.judged_samples for e in self._ears.values()), default=0)

    def _deliver(self, session_id: str, progress: SpeechProgress) -> None:
        """In the helper thread."""
        with self._lock:
            self._answers.append((session_id, progress))
            if self._is_woken:
                return
            self._is_woken = True
        try:
            self._loop.call_soon_threadsafe(self._hand_out)
        except RuntimeError:  # the loop has ended, and with it everyone who listens
            return

    def _hand_out(self) -> None:
        with self._lock:
            answers, self._answers = self._answers, deque()
            self._is_woken = False
        for session_id, progress in answers:
            ear = self._ears.get(session_id)
            if ear is not None:
                ear.judged_samples = progress.until_sample
                ear.listener.receive_speech(progress)


class _Ear:
    """One session, counted from the sample its listening began at."""

    __slots__ = ("judged_samples", "listener", "pushed_samples")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.pushed_samples = 0
        self.judged_samples = 0
