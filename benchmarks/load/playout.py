"""Playout: what a listener hears, and when, of sound that comes in packets.

    packets   ▌▌  ▌▌▌        ▌▌▌▌
    buffer    ▁▃▅▃▅▆▄▂▁·····▁▃▅▆▅▄▃▂▁      · underrun: the listener hears a hole
    heard       ├──────────┤     ├─────────┤
                └ starts once `prebuffer_s` of sound are there, again after each hole

A pure simulation: times go in as arguments (seconds on any clock), nothing waits. Samples are counted, not timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

OUTPUT_RATE = 24_000
AUDIBLE_LEVEL = 10 ** (-50 / 20)
"""Of full scale. Below it a listener hears nothing: leading silence in a reply is waiting time."""


@dataclass(frozen=True, slots=True)
class Underrun:
    """A hole in the sound."""

    start_s: float
    duration_s: float


@dataclass(slots=True)
class _Stretch:
    """Sound heard without a hole: `num_samples` from `start_sample`, the first of them at `start_s`."""

    start_s: float
    start_sample: int
    num_samples: int

    def end_s(self, rate: int) -> float:
        return self.start_s + self.num_samples / rate


class Playout:
    """One reply's simulated player. Push packets in order of time, then `finish`.

    Raises ValueError when time runs backwards: the caller's clock is broken, and every figure would be.
    """

    def __init__(self, prebuffer_s: float = 0.08, rate: int = OUTPUT_RATE) -> None:
        self.rate = rate
        self.prebuffer_samples = round(prebuffer_s * rate)
        self.num_samples = 0
        self._stretches: list[_Stretch] = []
        self._waiting = 0  # received, not yet given a place in time
        self._now_s = float("-inf")
        self._is_finished = False
        self._first_audible: int | None = None

    def push(self, now_s: float, pcm: bytes) -> None:
        """Take int16 samples that arrived at `now_s`."""
        samples = np.frombuffer(pcm, "<i2")
        if self._first_audible is None and len(samples):
            loud = np.flatnonzero(np.abs(samples.astype(np.int32)) >= AUDIBLE_LEVEL * 32768)
            if len(loud):
                self._first_audible = self.num_samples + int(loud[0])
        self.push_samples(now_s, len(samples))

    def push_samples(self, now_s: float, count: int) -> None:
        """Take `count` samples whose loudness does not matter."""
        self._advance(now_s)
        self.num_samples += count
        if self._stretches and self._stretches[-1].end_s(self.rate) >= now_s and not self._waiting:
            self._stretches[-1].num_samples += count
            return
        self._waiting += count
        if self._waiting and self._waiting >= self.prebuffer_samples:
            self._start(now_s)

    def finish(self, now_s: float) -> None:
        """No more will come: what is buffered is played however little it is."""
        self._advance(now_s)
        if self._waiting:
            self._start(now_s)
        self._is_finished = True

    def heard_samples(self, now_s: float) -> int:
        """Samples played until `now_s`."""
        heard = 0
        for stretch in self._stretches:
            elapsed = round((now_s - stretch.start_s) * self.rate)
            heard += min(stretch.num_samples, max(0, elapsed))
        return heard

    def lead_s(self, now_s: float) -> float:
        """Sound received and not yet heard, in seconds."""
        return (self.num_samples - self.heard_samples(now_s)) / self.rate

    @property
    def start_s(self) -> float | None:
        """When the first sample was played."""
        return self._stretches[0].start_s if self._stretches else None

    @property
    def end_s(self) -> float | None:
        """When the last sample that has a place in time is played."""
        return self._stretches[-1].end_s(self.rate) if self._stretches else None

    @property
    def first_audible_s(self) -> float | None:
        """When the listener hears the first sample above `AUDIBLE_LEVEL`."""
        if self._first_audible is None:
            return None
        for stretch in self._stretches:
            offset = self._first_audible - stretch.start_sample
            if offset < stretch.num_samples:
                return stretch.start_s + offset / self.rate
        return None

    @property
    def underruns(self) -> list[Underrun]:
        """The holes between first and last sample, in order."""
        pairs = zip(self._stretches, self._stretches[1:], strict=False)
        return [Underrun(a.end_s(self.rate), b.start_s - a.end_s(self.rate)) for a, b in pairs]

    def _advance(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ValueError(f"time ran backwards: {now_s} after {self._now_s}")
        if self._is_finished:
            raise ValueError("the reply was finished")
        self._now_s = now_s

    def _start(self, now_s: float) -> None:
        self._stretches.append(_Stretch(now_s, self.num_samples - self._waiting, self._waiting))
        self._waiting = 0
