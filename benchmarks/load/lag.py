"""The load generator's own lag: how late its event loop ran, how late it sent, how much of a core it used.

A late loop reads events late, so every latency carries the lag as an error. Who measures must say how large it is.
"""

from __future__ import annotations

import asyncio
import bisect
import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.load.figures import percentile
from benchmarks.load.records import GeneratorRecord

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE_S = 0.01


@dataclass(slots=True)
class LagProbe:
    """Sleeps ten milliseconds again and again, and notes by how much it overslept."""

    clock: Callable[[], float]
    times_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """Of each message of sound: how long after it was due it was sent."""
    _started_s: float = 0.0
    _cpu_s: float = 0.0

    async def run(self) -> None:
        self._started_s, self._cpu_s = self.clock(), _cpu_s()
        while True:
            due_s = self.clock() + PROBE_S
            await asyncio.sleep(PROBE_S)
            now_s = self.clock()
            self.times_s.append(now_s)
            self.lags_s.append(max(0.0, now_s - due_s))

    def worst_between(self, start_s: float, end_s: float) -> float:
        """Worst lag noted in a stretch of time, in seconds."""
        first = bisect.bisect_left(self.times_s, start_s)
        # The probe that ends after the stretch may have slept through part of it.
        last = bisect.bisect_right(self.times_s, end_s) + 1
        return max(self.lags_s[first:last], default=0.0)

    def report(self) -> GeneratorRecord:
        elapsed_s = max(1e-9, self.clock() - self._started_s)
        lags = self.lags_s or [0.0]
        return GeneratorRecord(
            lag_p50_ms=round(1000 * percentile(lags, 50), 2),
            lag_p99_ms=round(1000 * percentile(lags, 99), 2),
            lag_max_ms=round(1000 * max(lags), 2),
            late_p99_ms=round(1000 * percentile(self.late_s or [0.0], 99), 2),
            cpu_share=round((_cpu_s() - self._cpu_s) / elapsed_s, 3),
        )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
