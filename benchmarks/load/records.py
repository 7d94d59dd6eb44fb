"""What a run leaves behind: records, one JSON object a line, and the reader that takes them back.

{"kind": "run", …}                    once: when, where, scenario, targets
{"kind": "turn", "target": …, …}      one per turn
{"kind": "level", "target": …, …}     one per target and number of callers: the load generator's own figures
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


class RecordFault(ValueError):
    """A file does not hold a run."""


@dataclass(frozen=True, slots=True)
class Packet:
    """Sound that arrived together, in milliseconds after the end of speech."""

    at_ms: float
    num_samples: int


@dataclass(slots=True)
class TurnRecord:
    """One turn; times in milliseconds after the caller's last sample, None where it never came."""

    index: int
    clip: str
    speech_s: float
    status: str
    reason: str | None = None
    target: str = ""
    num_callers: int = 0
    caller: int = 0
    group: str = ""
    is_judged: bool = True
    decided_ms: float | None = None
    response_ms: float | None = None
    first_text_ms: float | None = None
    first_audio_ms: float | None = None
    audible_ms: float | None = None
    last_audio_ms: float | None = None
    done_ms: float | None = None
    audio_s: float = 0.0
    speed: float | None = None
    """Seconds of sound made per second."""
    underruns_ms: list[float] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    num_early_decisions: int = 0
    interrupted_by: str = ""
    silence_ms: float | None = None
    """From the interruption to a silent ear."""
    cancelled_ms: float | None = None
    """From a silent ear to the server's word that the reply has ended."""
    heard_s: float | None = None
    num_stale_packets: int = 0
    lag_ms: float = 0.0
    """Worst lag of the load generator between end of speech and first sound: the error of the figures above."""
    text: str = ""
    errors: list[str] = field(default_factory=list)

    @property
    def is_failed(self) -> bool:
        """No complete spoken answer: an error, a failed, missing or silent response, or one cut off by the server."""
        if self.errors or self.status not in ("completed", "incomplete", "cancelled"):
            return True
        if self.first_audio_ms is None and not self.interrupted_by:
            return True
        if self.status == "incomplete":
            return self.reason != "max_output_tokens"
        return self.status == "cancelled" and not self.interrupted_by


@dataclass(slots=True)
class GeneratorRecord:
    """How well the load generator itself kept time."""

    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    late_p99_ms: float
    """Of sound sent after it was due."""
    cpu_share: float
    """Of one core."""

    LAG_LIMIT_MS = 20.0
    LATE_LIMIT_MS = 40.0
    CPU_LIMIT = 0.9

    @property
    def complaints(self) -> list[str]:
        """Why the figures may tell more of the load generator than of the server; empty if they do not."""
        found = []
        if self.lag_p99_ms > self.LAG_LIMIT_MS:
            found.append(
                f"its event loop lagged {self.lag_p99_ms:.0f} ms at p99 (limit {self.LAG_LIMIT_MS:.0f})"
            )
        if self.late_p99_ms > self.LATE_LIMIT_MS:
            found.append(
                f"it sent sound {self.late_p99_ms:.0f} ms late at p99 (limit {self.LATE_LIMIT_MS:.0f})"
            )
        if self.cpu_share > self.CPU_LIMIT:
            found.append(f"it used {self.cpu_share:.0%} of a core (limit {self.CPU_LIMIT:.0%})")
        return found


@dataclass(slots=True)
class LevelRecord:
    """One target under one number of callers."""

    target: str
    num_callers: int
    duration_s: float
    generator: GeneratorRecord
    call_errors: list[str] = field(default_factory=list)
    """Calls that could not be made, or broke."""
    load_average: float = 0.0
    """Of this machine when the level ended, over a minute: what else ran beside, the server included if it is here."""


@dataclass(slots=True)
class Run:
    """Everything that was measured together; only within one run are ratios worth anything."""

    scenario: str
    started_at: str
    host: str
    targets: dict[str, str]
    """Name to address; the first is the one that the others are compared with."""
    seed: int = 0
    notes: str = ""
    turns: list[TurnRecord] = field(default_factory=list)
    levels: list[LevelRecord] = field(default_factory=list)

    def of(self, target: str, num_callers: int) -> list[TurnRecord]:
        """Judged turns of one level."""
        return [
            t
            for t in self.turns
            if t.is_judged and (t.target, t.num_callers) == (target, num_callers)
        ]

    def level(self, target: str, num_callers: int) -> LevelRecord | None:
        for level in self.levels:
            if (level.target, level.num_callers) == (target, num_callers):
                return level
        return None

    @property
    def steps(self) -> list[tuple[str, int]]:
        """Every target and number of callers, in the order of targets, then of callers."""
        order = {name: i for i, name in enumerate(self.targets)}
        seen = {(level.target, level.num_callers) for level in self.levels}
        return sorted(seen, key=lambda s: (order.get(s[0], len(order)), s[1]))


def write_run(run: Run, path: Path) -> None:
    """Write a run as JSON lines."""
    head = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in ("turns", "levels")}
    lines: list[dict[str, Any]] = [{"kind": "run", "format": FORMAT} | head]
    lines += [{"kind": "level"} | asdict(level) for level in run.levels]
    for turn in run.turns:
        packets = [[p.at_ms, p.num_samples] for p in turn.packets]
        lines.append({"kind": "turn"} | asdict(turn) | {"packets": packets})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_run(path: Path) -> Run:
    """Read what `write_run` wrote. Raises RecordFault."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise RecordFault(f"{path}: {fault}") from None
    if not lines or not isinstance(lines[0], dict) or lines[0].get("kind") != "run":
        raise RecordFault(f"{path}: the first line is no run; expected what `parley bench` wrote")
    if lines[0].get("format") != FORMAT:
        raise RecordFault(
            f"{path}: format {lines[0].get('format')}, this version reads {FORMAT}: measure again"
        )
    try:
        return _assemble(lines)
    except (TypeError, KeyError) as fault:
        raise RecordFault(f"{path}: incomplete record: {fault}") from None


def _assemble(lines: list[dict[str, Any]]) -> Run:
    run = _made(Run, lines[0])
    for line in lines[1:]:
        if line["kind"] == "turn":
            packets = [Packet(at_ms, n) for at_ms, n in line["packets"]]
            run.turns.append(_made(TurnRecord, line | {"packets": packets}))
        elif line["kind"] == "level":
            generator = _made(GeneratorRecord, line["generator"])
            run.levels.append(_made(LevelRecord, line | {"generator": generator}))
    return run


Made = TypeVar("Made", Run, TurnRecord, LevelRecord, GeneratorRecord)


def _made(of: type[Made], line: dict[str, Any]) -> Made:
    names = {f.name for f in fields(of)}
    return of(**{name: value for name, value in line.items() if name in names})
