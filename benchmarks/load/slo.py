"""Objectives: limits from a TOML file, and the verdict of a level against them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.load.figures import FIGURES, SHARES, percentile, share, values_of
from benchmarks.load.scenario import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.records import LevelRecord, TurnRecord

SLO_DIR = Path(__file__).resolve().parent.parent / "slo"
PERCENTS = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "worst": 100.0}


class SloFault(ValueError):
    """An objectives file cannot be used; the message says why."""


class Outcome(IntEnum):
    """Of a run; the exit status. 2 is a wrong command line."""

    KEPT = 0
    BROKEN = 1
    UNPROVEN = 3
    """Nothing was measured, or the load generator was the bottleneck when a limit was broken."""


class Objective(BaseModel):
    """One limit: `figure` at `at`, or a share of turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: str
    at: Literal["p50", "p95", "p99", "worst"] | None = None
    at_most: float = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Objective:
        if self.figure not in FIGURES and self.figure not in SHARES:
            known = ", ".join([*FIGURES, *SHARES])
            raise ValueError(f"no figure {self.figure!r}; there are {known}")
        if (self.at is None) != (self.figure in SHARES):
            raise ValueError(
                f"{self.figure} "
                + (
                    "is a share and takes no `at`"
                    if self.at
                    else "needs at = p50, p95, p99 or worst"
                )
            )
        return self

    @property
    def words(self) -> str:
        limit = f"{self.at_most:.1%}" if self.at is None else f"{self.at_most:g}"
        return f"{self.figure}{' ' + self.at if self.at else ''} ≤ {limit}"

    def measure(self, turns: Sequence[TurnRecord]) -> float | None:
        """The value to compare with the limit; None when it does not occur in these turns."""
        if self.at is None:
            return share(turns, self.figure)
        values = values_of(turns, self.figure)
        return percentile(values, PERCENTS[self.at]) if values else None


class Slo(BaseModel):
    """All limits of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "objectives"
    description: str = ""
    objective: tuple[Objective, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One objective and what was measured."""

    objective: Objective
    measured: float | None

    @property
    def is_kept(self) -> bool:
        return self.measured is None or self.measured <= self.objective.at_most


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one level."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    reasons: tuple[str, ...]
    """Why it is unproven."""


def load_slo(name: str) -> Slo:
    """Read objectives: the path of a file, or the name of one in `benchmarks/slo`. Raises SloFault."""
    path = Path(name)
    if path.suffix != ".toml":
        path = SLO_DIR / f"{name}.toml"
    try:
        text = path.read_text()
    except OSError:
        there = ", ".join(sorted(p.stem for p in SLO_DIR.glob("*.toml")))
        raise SloFault(f"no objectives {name!r}: there are {there}") from None
    return read_slo(text, str(path))


def read_slo(text: str, where: str) -> Slo:
    """Parse objectives. Raises SloFault; `where` begins its message."""
    try:
        return Slo.model_validate({"name": Path(where).stem} | tomllib.loads(text))
    except tomllib.TOMLDecodeError as fault:
        raise SloFault(f"{where}: {fault}") from None
    except ValidationError as fault:
        raise SloFault(f"{where}: " + "; ".join(explain(fault, Slo))) from None


def judge(slo: Slo, turns: Sequence[TurnRecord], level: LevelRecord) -> Verdict:
    """Compare a level with the objectives.

    Lag of the load generator only ever adds to a latency: what was kept in spite of it is kept, what was broken under
    it is unproven.
    """
    findings = tuple(Finding(o, o.measure(turns)) for o in slo.objective)
    if not turns:
        return Verdict(Outcome.UNPROVEN, findings, ("no turn was measured", *level.call_errors[:3]))
    if level.call_errors:
        return Verdict(Outcome.BROKEN, findings, tuple(level.call_errors[:3]))
    if all(finding.is_kept for finding in findings):
        return Verdict(Outcome.KEPT, findings, ())
    complaints = tuple(level.generator.complaints)
    return Verdict(Outcome.UNPROVEN if complaints else Outcome.BROKEN, findings, complaints)


def overall(verdicts: Sequence[Verdict]) -> Outcome:
    """Broken anywhere is broken; otherwise unproven anywhere is unproven."""
    outcomes = {verdict.outcome for verdict in verdicts}
    for outcome in (Outcome.BROKEN, Outcome.UNPROVEN):
        if outcome in outcomes:
            return outcome
    return Outcome.KEPT if outcomes else Outcome.UNPROVEN
