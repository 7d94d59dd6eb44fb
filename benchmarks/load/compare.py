"""Comparison: targets within a run, and one run with another.

Between two runs the machine may have changed, so a difference is told only where it is larger than chance
would make it: a rank test on the single values, not two medians side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.load.figures import FIGURES, Summary, percentile, summarize, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.records import Run

COMPARED = (
    "decided_ms", "first_text_ms", "first_audio_ms", "audible_ms", "decided_to_text_ms", "decided_to_audio_ms",
    "silence_ms", "real_time_factor",
)  # fmt: skip
SURE = 3.0
"""Standard deviations of the rank sum: chance alone gets there once in 370 comparisons."""
LEAST_COUNT = 5


@dataclass(frozen=True, slots=True)
class Ratio:
    """Another target's median, and how many times the first one's it is."""

    target: str
    value: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class RatioRow:
    """One figure at one number of callers."""

    figure: str
    num_callers: int
    first: float
    others: tuple[Ratio, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in two runs."""

    figure: str
    target: str
    num_callers: int
    before: Summary
    after: Summary
    z: float
    """Of the rank sum; positive: larger values after."""
    is_enough: bool

    @property
    def word(self) -> str:
        if not self.is_enough:
            return "too few"
        if abs(self.z) < SURE:
            return "no difference"
        return "worse" if (self.z > 0) == FIGURES[self.figure].lower_is_better else "better"


def ratios(run: Run) -> list[RatioRow]:
    """Every other target against the first, figure by figure; only rows that the first has."""
    first, *others = run.targets
    rows = []
    for name in COMPARED:
        for num_callers in sorted({n for _, n in run.steps}):
            mine = _median(values_of(run.of(first, num_callers), name))
            if mine is None or not others:
                continue
            cells = []
            for other in others:
                value = _median(values_of(run.of(other, num_callers), name))
                ratio = value / mine if value is not None and 0 < mine < math.inf else None
                cells.append(Ratio(other, value, ratio))
            rows.append(RatioRow(name, num_callers, mine, tuple(cells)))
    return rows


def _median(values: Sequence[float]) -> float | None:
    return percentile(values, 50) if values else None


def changes(before: Run, after: Run) -> list[Change]:
    """Every figure that both runs have for the same target and number of callers."""
    found = []
    for target, num_callers in after.steps:
        for name in COMPARED:
            old = values_of(before.of(target, num_callers), name)
            new = values_of(after.of(target, num_callers), name)
            old_summary, new_summary = summarize(old), summarize(new)
            if old_summary is None or new_summary is None:
                continue
            is_enough = min(len(old), len(new)) >= LEAST_COUNT
            z = rank_sum_z(old, new)
            found.append(Change(name, target, num_callers, old_summary, new_summary, z, is_enough))
    return found


def rank_sum_z(old: Sequence[float], new: Sequence[float]) -> float:
    """How unusual it would be, in standard deviations, for both samples to have one source (Mann and Whitney, 1947).

    Equal values share their mean rank and shrink the variance accordingly. Positive when `new` is larger.
    """
    n, m = len(old), len(new)
    if not n or not m:
        return 0.0
    merged = sorted([(v, 0) for v in old] + [(v, 1) for v in new])
    rank_sum, ties, i = 0.0, 0.0, 0
    while i < len(merged):
        j = i
        while j < len(merged) and merged[j][0] == merged[i][0]:
            j += 1
        mean_rank, size = (i + 1 + j) / 2, j - i
        ties += size**3 - size
        rank_sum += mean_rank * sum(which for _, which in merged[i:j])
        i = j
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 0.0
    return (rank_sum - m * (total + 1) / 2) / math.sqrt(variance)
