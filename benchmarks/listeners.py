"""What listeners of replies made at the same time get: who waited, who heard a hole, how fairly the sound was shared.

Pure: times go in as arguments, in milliseconds on any clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.load.figures import NEVER, percentile
from benchmarks.load.playout import Playout

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Listener:
    """One reply and its simulated player, from the commit at `asked_ms` on."""

    asked_ms: float
    playout: Playout = field(default_factory=Playout)
    ended_ms: float = NEVER
    """When nothing more was to come."""
    _arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_ms(self) -> float:
        """From the commit to the first sound."""
        return self._arrivals[0][0] - self.asked_ms if self._arrivals else NEVER

    @property
    def is_silent(self) -> bool:
        return not self._arrivals

    def hear(self, now_ms: float, num_samples: int) -> None:
        self._arrivals.append((now_ms, num_samples))
        self.playout.push_samples(now_ms / 1000, num_samples)

    def end(self, now_ms: float) -> None:
        self.ended_ms = now_ms
        self.playout.finish(now_ms / 1000)

    def samples_by(self, now_ms: float) -> int:
        return sum(count for at_ms, count in self._arrivals if at_ms <= now_ms)


@dataclass(frozen=True, slots=True)
class Hearing:
    """Figures of replies that were asked for at the same time."""

    first_p50_ms: float
    first_p95_ms: float
    first_worst_ms: float
    num_underruns: int
    num_broken: int
    """Replies with an underrun."""
    num_silent: int
    """Replies that never sounded."""
    jain: float
    least: float
    """Smallest share of the sound that was delivered while all replies were being made; 1 is a fair share."""
    most: float

    @property
    def spread(self) -> float:
        """How much longer than usual the last one waited for the first sound."""
        return self.first_worst_ms / self.first_p50_ms if self.first_p50_ms else math.nan


def hearing(listeners: Sequence[Listener]) -> Hearing:
    """Sum up replies. Shares are counted until the first of them ends: after that it leaves its part to the others."""
    first = [one.first_ms for one in listeners]
    holes = [len(one.playout.underruns) for one in listeners]
    all_run_until = min(one.ended_ms for one in listeners)
    delivered = [one.samples_by(all_run_until) for one in listeners]
    fair = sum(delivered) / len(delivered)
    return Hearing(
        first_p50_ms=percentile(first, 50),
        first_p95_ms=percentile(first, 95),
        first_worst_ms=max(first),
        num_underruns=sum(holes),
        num_broken=sum(map(bool, holes)),
        num_silent=first.count(NEVER),
        jain=jain_index(delivered),
        least=min(delivered) / fair if fair else 1.0,
        most=max(delivered) / fair if fair else 1.0,
    )


def jain_index(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all got the same, 1/n if one of n got everything.

    Raises:
        ValueError: no shares.
    """
    if not shares:
        raise ValueError("no shares")
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
