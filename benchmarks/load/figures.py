"""Figures: what is told of turns, percentiles of it, and the summary of a level.

A turn that never got its sound counts as infinitely late: leaving it out would make a server look faster the more it
fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.load.records import TurnRecord

NEVER = math.inf


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of all values do not exceed (nearest rank): one that occurred.

    Raises:
        ValueError: no values, or not a percentage.
    """
    if not values:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; it must be 0 to 100")
    rank = max(1, math.ceil(len(values) * percent / 100 - 1e-9))
    return sorted(values)[rank - 1]


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of number: its values in a turn, none where it does not apply."""

    name: str
    title: str
    unit: str
    values: Callable[[TurnRecord], list[float]]
    is_latency: bool = True
    lower_is_better: bool = True


def _some(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _or_never(turn: TurnRecord, value: float | None) -> list[float]:
    """A value that every turn should have; an interrupted one is excused."""
    if value is None and turn.interrupted_by:
        return []
    return [NEVER if value is None else value]


def _gaps(turn: TurnRecord) -> list[float]:
    times = [packet.at_ms for packet in turn.packets]
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def _decided_to_audio(turn: TurnRecord) -> list[float]:
    if turn.decided_ms is None or turn.first_audio_ms is None:
        return []
    return [turn.first_audio_ms - turn.decided_ms]


def _decided_to_text(turn: TurnRecord) -> list[float]:
    if turn.decided_ms is None or turn.first_text_ms is None:
        return []
    return [turn.first_text_ms - turn.decided_ms]


def _silence(turn: TurnRecord) -> list[float]:
    """By voice only: a button empties the player in the same moment."""
    return _some(turn.silence_ms) if turn.interrupted_by == "voice" else []


def _real_time_factor(turn: TurnRecord) -> list[float]:
    """Seconds of work per second of sound."""
    return [] if not turn.speed else [1 / turn.speed]


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("decided_ms", "turn decided", "ms", lambda t: _or_never(t, t.decided_ms)),
        Figure("first_text_ms", "first text", "ms", lambda t: _some(t.first_text_ms)),
        Figure(
            "first_audio_ms", "first audio byte", "ms", lambda t: _or_never(t, t.first_audio_ms)
        ),
        Figure("audible_ms", "first audible sample", "ms", lambda t: _or_never(t, t.audible_ms)),
        Figure("decided_to_text_ms", "decided → first text", "ms", _decided_to_text),
        Figure("decided_to_audio_ms", "decided → first audio", "ms", _decided_to_audio),
        Figure("gap_ms", "gap between packets", "ms", _gaps),
        Figure("underrun_ms", "hole in the sound", "ms", lambda t: list(t.underruns_ms)),
        Figure("silence_ms", "interrupt by voice → silence", "ms", _silence),
        Figure("cancelled_ms", "ear silent → reply ended", "ms", lambda t: _some(t.cancelled_ms)),
        Figure("real_time_factor", "real-time factor", "×", _real_time_factor, is_latency=False),
        Figure("lag_ms", "our own lag", "ms", lambda t: [t.lag_ms], is_latency=False),
    )
}
SHARES = {
    "error_share": "turns that failed",
    "underrun_share": "turns with a hole in the sound",
    "early_share": "turns cut in a pause",
}
STAGES = ("decided_ms", "first_text_ms", "first_audio_ms", "audible_ms")


def values_of(turns: Sequence[TurnRecord], name: str) -> list[float]:
    """Every value of a figure in these turns."""
    extract = FIGURES[name].values
    return [value for turn in turns for value in extract(turn)]


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure of one level."""

    count: int
    p50: float
    p95: float
    p99: float
    worst: float


def summarize(values: Sequence[float]) -> Summary | None:
    """None when there is nothing to summarize."""
    if not values:
        return None
    p50, p95, p99 = (percentile(values, p) for p in (50, 95, 99))
    return Summary(len(values), p50, p95, p99, max(values))


def share(turns: Sequence[TurnRecord], name: str) -> float | None:
    """One of `SHARES`; None without turns."""
    if not turns:
        return None
    counts: dict[str, Callable[[TurnRecord], bool]] = {
        "error_share": lambda t: t.is_failed,
        "underrun_share": lambda t: bool(t.underruns_ms),
        "early_share": lambda t: t.num_early_decisions > 0,
    }
    return sum(map(counts[name], turns)) / len(turns)
