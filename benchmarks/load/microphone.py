"""Microphone: sound sent in real time, frame after frame on the clock, whatever the server does.

A frame is sent when it has been recorded: the one that covers [t, t + frame) leaves at t + frame. A caller who says
nothing sends silence, as an open microphone does; with push to talk nothing is sent between the turns.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.load.dialogue import Utterance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.load.clips import Clip


class Microphone:
    """One caller's. `say` between `run`'s frames; `run` until cancelled."""

    def __init__(
        self,
        rate: int,
        frame_s: float,
        send: Callable[[bytes], Awaitable[None]],
        clock: Callable[[], float],
        late_s: list[float],
        *,
        on_spoken: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            late_s: is given, per frame, how long after it was due it was sent.
            on_spoken: push to talk: called when an utterance has been sent; silence is not sent.
        """
        self._frame_bytes = 2 * round(rate * frame_s)
        self._frame_s = self._frame_bytes / 2 / rate
        self._send = send
        self._clock = clock
        self._late_s = late_s
        self._on_spoken = on_spoken
        self._pcm = b""
        self._offset = 0
        self._origin_s = clock()
        self._num_frames = 0
        self.num_samples = 0
        """Sent so far: the input clock of the session."""

    def say(self, clip: Clip) -> Utterance:
        """Begin with the next frame; returns when its first and last sample are spoken."""
        assert not self._pcm, "one utterance at a time"
        # The frame in the making began before now; the clip begins with the one after.
        begins_s = self._origin_s + (self._num_frames + 1) * self._frame_s
        self._pcm, self._offset = clip.pcm, -self._frame_bytes
        return Utterance(clip.name, begins_s, begins_s + clip.duration_s)

    async def run(self) -> None:
        while True:
            due_s = self._origin_s + (self._num_frames + 1) * self._frame_s
            await asyncio.sleep(max(0.0, due_s - self._clock()))
            frame, is_last = self._next_frame()
            self._num_frames += 1
            if frame:
                await self._send(frame)
                self._late_s.append(self._clock() - due_s)
                self.num_samples += len(frame) // 2
            if is_last and self._on_spoken is not None:
                await self._on_spoken()

    def _next_frame(self) -> tuple[bytes, bool]:
        """The frame that has just been recorded, and whether an utterance ended in it."""
        silence = b"" if self._on_spoken else bytes(self._frame_bytes)
        if not self._pcm:
            return silence, False
        start = self._offset
        self._offset += self._frame_bytes
        if start < 0:
            return silence, False
        frame = self._pcm[start : start + self._frame_bytes].ljust(self._frame_bytes, b"\0")
        if self._offset < len(self._pcm):
            return frame, False
        self._pcm, self._offset = b"", 0
        return frame, True
