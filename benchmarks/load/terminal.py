"""What a person sees in the terminal: a live line per level, and tables at the end."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.load.compare import Change, ratios
from benchmarks.load.figures import FIGURES, SHARES, percentile, share, summarize, values_of
from benchmarks.load.slo import Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

    from benchmarks.load.records import LevelRecord, Run, TurnRecord
    from benchmarks.load.slo import Verdict

OUTCOME_STYLES = {Outcome.KEPT: "green", Outcome.BROKEN: "red", Outcome.UNPROVEN: "yellow"}
MEANS_LATENESS = 20.0


def number(value: float | None) -> str:
    """A figure as people write it."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "never"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class LiveProgress:
    """One line that lives while a level runs; enter it around the run."""

    def __init__(self, console: Console) -> None:
        self._title = ""
        self._begun_s = time.monotonic()
        self._duration_s = 1.0
        self._audio_ms: list[float] = []
        self._num_turns = self._num_failed = self._num_holes = self._num_broken_calls = 0
        self._lag_ms = 0.0
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, fault, traceback)

    def begin(self, target: str, num_callers: int, duration_s: float) -> None:
        self._title = f"{target}, {num_callers} caller{'s' if num_callers > 1 else ''}"
        self._begun_s, self._duration_s = time.monotonic(), max(0.1, duration_s)
        self._audio_ms.clear()
        self._num_turns = self._num_failed = self._num_holes = self._num_broken_calls = 0
        self._lag_ms = 0.0

    def turn(self, turn: TurnRecord) -> None:
        self._num_turns += 1
        self._num_failed += turn.is_failed
        self._num_holes += bool(turn.underruns_ms)
        if turn.first_audio_ms is not None:
            self._audio_ms.append(turn.first_audio_ms)

    def call_error(self, words: str) -> None:
        self._num_broken_calls += 1
        self._live.console.print(f"[red]call broke:[/] {words}")

    def lag(self, lag_ms: float) -> None:
        self._lag_ms = max(self._lag_ms, lag_ms)

    def end(self, level: LevelRecord) -> None:
        for complaint in level.generator.complaints:
            where = f"{level.target}, {level.num_callers} callers"
            bottleneck = f"[yellow]{where}: the load generator was the bottleneck:[/] {complaint}"
            self._live.console.print(bottleneck, highlight=False)

    def _render(self) -> RenderableType:
        part = min(1.0, (time.monotonic() - self._begun_s) / self._duration_s)
        filled = round(24 * part)
        middle = number(percentile(self._audio_ms, 50)) if self._audio_ms else "–"
        line = Text.assemble(
            (f"{self._title:<28}", "bold"),
            ("━" * filled, "cyan"),
            ("━" * (24 - filled), "dim"),
            f"  {self._num_turns} turns  first audio p50 {middle} ms",
        )
        for count, words, style in (
            (self._num_failed, "failed", "red"),
            (self._num_broken_calls, "calls broke", "red"),
            (self._num_holes, "with holes", "yellow"),
        ):
            if count:
                line.append(f"  {count} {words}", style)
        line.append(
            f"  lag {self._lag_ms:.0f} ms", "yellow" if self._lag_ms > MEANS_LATENESS else "dim"
        )
        return line


def summary_table(run: Run) -> Table:
    """Every figure of every level: p50 / p95 / p99."""
    table = Table(
        title="milliseconds after the caller's last sample: p50 / p95 / p99", title_justify="left"
    )
    table.add_column("")
    for target, num_callers in run.steps:
        name = f"{target}\n" if len(run.targets) > 1 else ""
        table.add_column(f"{name}{num_callers} ×", justify="right")
    for figure in FIGURES.values():
        cells = [_cell(run, figure.name, step) for step in run.steps]
        if any(cell != "–" for cell in cells):
            table.add_row(figure.title, *cells)
    table.add_section()
    for name, title in SHARES.items():
        shares = [share(run.of(*step), name) for step in run.steps]
        table.add_row(title, *("–" if s is None else f"{s:.1%}" for s in shares))
    table.add_row("turns", *(str(len(run.of(*step))) for step in run.steps))
    levels = [run.level(*step) for step in run.steps]
    table.add_row(
        "load average here", *("–" if v is None else f"{v.load_average:.1f}" for v in levels)
    )
    return table


def _cell(run: Run, name: str, step: tuple[str, int]) -> str:
    summary = summarize(values_of(run.of(*step), name))
    if summary is None:
        return "–"
    return " / ".join(number(v) for v in (summary.p50, summary.p95, summary.p99))


def verdict_table(verdicts: dict[tuple[str, int], Verdict]) -> Table:
    """Objectives by level."""
    table = Table(title="objectives", title_justify="left")
    table.add_column("")
    for target, num_callers in verdicts:
        table.add_column(f"{target} {num_callers} ×", justify="right")
    columns = list(verdicts.values())
    for row in zip(*(verdict.findings for verdict in columns), strict=True):
        cells = []
        for finding in row:
            style = "dim" if finding.measured is None else "green" if finding.is_kept else "red"
            is_share = finding.objective.at is None and finding.measured is not None
            shown = f"{finding.measured:.1%}" if is_share else number(finding.measured)
            cells.append(Text(shown, style))
        table.add_row(row[0].objective.words, *cells)
    table.add_section()
    outcomes = [Text(v.outcome.name.lower(), OUTCOME_STYLES[v.outcome]) for v in columns]
    table.add_row("verdict", *outcomes)
    return table


def ratio_table(run: Run) -> Table:
    """Medians of the other targets over those of the first."""
    first, *others = run.targets
    table = Table(
        title=f"medians: {first}, and how many times as long the others took", title_justify="left"
    )
    table.add_column("")
    table.add_column("callers", justify="right")
    table.add_column(first, justify="right")
    for other in others:
        table.add_column(other, justify="right")
    for row in ratios(run):
        cells = [f"{number(c.value)} ({number(c.ratio)} ×)" for c in row.others]
        table.add_row(FIGURES[row.figure].title, str(row.num_callers), number(row.first), *cells)
    return table


def change_table(changes: list[Change], before: str, after: str) -> Table:
    """Two runs side by side."""
    table = Table(title=f"{before} → {after}", title_justify="left")
    for name in ("", "target", "callers"):
        table.add_column(name)
    for name in ("p50", "p95"):
        table.add_column(name, justify="right")
    table.add_column("turns", justify="right")
    table.add_column("")
    for c in changes:
        style = {"better": "green", "worse": "red"}.get(c.word, "dim")
        table.add_row(
            FIGURES[c.figure].title,
            c.target,
            str(c.num_callers),
            f"{number(c.before.p50)} → {number(c.after.p50)}",
            f"{number(c.before.p95)} → {number(c.after.p95)}",
            f"{c.before.count} → {c.after.count}",
            Text(c.word, style),
        )
    return table
