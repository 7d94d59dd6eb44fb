"""The report: one HTML file that needs nothing else, with plots, tables, verdict and the doubts about them."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.compare import changes, ratios
from benchmarks.load.figures import (
    FIGURES,
    SHARES,
    STAGES,
    percentile,
    share,
    summarize,
    values_of,
)
from benchmarks.load.plots import Bar, Series, against, bars, distribution, milliseconds
from benchmarks.load.slo import Outcome, overall
from benchmarks.load.terminal import number
from benchmarks.load.turn_plot import AFTER_MS, turn_plot, typical
from benchmarks.load.turn_plot import STAGES as TURN_STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.load.records import Run, TurnRecord
    from benchmarks.load.slo import Slo, Verdict

Step = tuple[str, int]
STYLE = Path(__file__).with_name("page.css")
NUM_COLOURS = 4
MOST_ERRORS = 12
OPENING = {
    Outcome.KEPT: "objectives kept",
    Outcome.BROKEN: "objectives broken",
    Outcome.UNPROVEN: "unproven",
}


def write_page(
    run: Run,
    path: Path,
    *,
    objectives: Slo | None,
    verdicts: Mapping[Step, Verdict],
    earlier: Run | None,
    prebuffer_s: float = 0.08,
) -> None:
    """Write the report of a run."""
    parts = [
        _head(run, verdicts),
        _doubts(run),
        _tiles(run),
        _one_turn(run, prebuffer_s),
        _where_time_goes(run),
        _against_callers(run, objectives),
        _distributions(run),
        _peers(run),
        _objectives(objectives, verdicts),
        _earlier(run, earlier),
        _table(run),
        _errors(run),
        _method(run),
    ]
    title = f"Parley bench: {run.scenario}"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE.read_text()}</style><main>{''.join(parts)}</main></html>\n"
    )


def _head(run: Run, verdicts: Mapping[Step, Verdict]) -> str:
    badge = ""
    if verdicts:
        outcome = overall(list(verdicts.values()))
        badge = f'<span class="verdict {outcome.name.lower()}">{OPENING[outcome]}</span>'
    servers = ", ".join(f"{escape(n)} (<code>{escape(u)}</code>)" for n, u in run.targets.items())
    notes = f"<br>{escape(run.notes)}" if run.notes else ""
    return (
        f"{badge}<h1>How long callers wait</h1><p>Scenario <b>{escape(run.scenario)}</b>, {escape(run.started_at)}, "
        f"{escape(run.host)}. Servers: {servers}.{notes}</p>"
    )


def _doubts(run: Run) -> str:
    words = [
        f"{level.target}, {level.num_callers} callers: {complaint}"
        for level in run.levels
        for complaint in level.generator.complaints
    ]
    if not words:
        return ""
    return (
        '<p class="warn"><b>The load generator was a bottleneck.</b> Its lag adds to every latency of these levels: '
        + "; ".join(map(escape, words))
        + ".</p>"
    )


def _tiles(run: Run) -> str:
    """The first target with the fewest callers."""
    first = next(iter(run.targets))
    steps = [step for step in run.steps if step[0] == first]
    if not steps:
        return ""
    turns = run.of(*steps[0])

    def median(name: str) -> str:
        values = values_of(turns, name)
        return milliseconds(percentile(values, 50)) if values else "–"

    holes = share(turns, "underrun_share")
    tiles = [
        (median("decided_to_audio_ms"), "turn decided → first sound"),
        (median("first_audio_ms"), "end of speech → first sound"),
        (median("audible_ms"), "end of speech → heard"),
        ("–" if holes is None else f"{holes:.0%}", "turns with a hole in the sound"),
    ]
    if values_of(turns, "silence_ms"):
        tiles.append((median("silence_ms"), "interrupt → silence"))
    cells = "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
    many = steps[0][1]
    return (
        f'<div class="tiles">{cells}</div><p>Medians of {len(turns)} turns of {escape(first)} with {many} '
        f"caller{'s' if many > 1 else ''} at once.</p>"
    )


def _one_turn(run: Run, prebuffer_s: float) -> str:
    fewest = min((n for _, n in run.steps), default=0)
    chosen: list[tuple[str, TurnRecord]] = []
    for target in run.targets:
        turn = typical(run.of(target, fewest))
        if turn is not None:
            chosen.append((target, turn))
    if not chosen:
        return ""
    until_ms = max((t.audible_ms or 0) for _, t in chosen) + AFTER_MS
    figures = [
        f"<figure>{turn_plot(turn, prebuffer_s, until_ms)}<figcaption>{escape(target)}: "
        f"{escape(turn.clip)}, answered “{escape(shorten(turn.text))}”</figcaption></figure>"
        for target, turn in chosen
    ]
    key = _key([(f"var(--w{i})", words) for i, (words, _, _) in enumerate(TURN_STAGES)])
    return (
        "<h2>One turn, stage by stage</h2><p>The median turn with the fewest callers. Zero is the caller’s "
        "last sample. "
        f"A mark is a packet of sound, its height what it holds; below it the sound that waits in the "
        f"player.</p>{key}" + "".join(figures)
    )


def _where_time_goes(run: Run) -> str:
    rows = []
    for target, num_callers in run.steps:
        turns = run.of(target, num_callers)
        at, stages = 0.0, []
        for i, (words, name, _) in enumerate(TURN_STAGES):
            values = [v for t in turns if (v := getattr(t, name)) is not None]
            if not values:
                continue
            until = percentile(values, 50)
            stages.append((words, max(0.0, until - at), f"wait{i}"))
            at = max(at, until)
        if stages:
            name = f"{target}, {num_callers} ×" if len(run.targets) > 1 else f"{num_callers} ×"
            rows.append(Bar(name, stages))
    if not rows:
        return ""
    key = _key([(f"var(--w{i})", words) for i, (words, _, _) in enumerate(TURN_STAGES)])
    return (
        "<h2>Where the time goes</h2><p>Medians of each moment, one row per number of callers.</p>"
        f"<figure>{bars('stages by level', rows)}{key}</figure>"
    )


def _against_callers(run: Run, objectives: Slo | None) -> str:
    numbers = sorted({n for _, n in run.steps})
    if len(numbers) < 2:
        return ""
    series = []
    for i, target in enumerate(run.targets):
        shown = (("p50", 50.0, "o0"), ("p95", 95.0, "o1 dash"), ("p99", 99.0, "o2 dots"))
        for word, percent, css in shown if len(run.targets) == 1 else shown[:1]:
            points = [
                (float(n), percentile(values, percent))
                for n in numbers
                if (values := values_of(run.of(target, n), "first_audio_ms"))
            ]
            title = word if len(run.targets) == 1 else f"{target} {word}"
            series.append(Series(title, points, f"t{i % NUM_COLOURS} {css}"))
    limit = None
    if objectives is not None:
        limits = [o.at_most for o in objectives.objective if o.figure == "first_audio_ms"]
        limit = min(limits, default=None)
    plot = against("latency against callers", series, limit)
    if not plot:
        return ""
    return (
        "<h2>Latency against callers</h2><p>From the end of speech to the first byte of sound.</p>"
        f"<figure>{plot}</figure>"
    )


def _distributions(run: Run) -> str:
    one_target = len(run.targets) == 1
    fewest = min((n for _, n in run.steps), default=0)
    # Several servers times several levels are more lines than an eye can follow.
    steps = [step for step in run.steps if one_target or step[1] == fewest]
    plots = []
    for name in (*STAGES, "gap_ms", "silence_ms"):
        series = []
        for i, step in enumerate(steps):
            values = sorted(values_of(run.of(*step), name))
            points = [(v, (k + 1) / len(values)) for k, v in enumerate(values)]
            series.append(Series(_step_name(run, step), points, _colour(run, steps, i)))
        if any(s.points for s in series):
            plots.append(distribution(FIGURES[name].title, series))
    plots = [plot for plot in plots if plot]
    if not plots:
        return ""
    colours = []
    for i, step in enumerate(steps):
        which = list(run.targets).index(step[0])
        part = (100, 72, 50, 34)[_rank(steps, i) % NUM_COLOURS]
        colour = f"color-mix(in srgb, var(--c{which % NUM_COLOURS}) {part}%, transparent)"
        colours.append((colour, _step_name(run, step)))
    key = _key(colours)
    what = "number of callers" if one_target else "server"
    return (
        f"<h2>Distributions</h2><p>The share of turns that had come so far by then, one line per {what}. "
        f"A line that does not reach the top has turns that never did.</p><figure><div "
        f'class="pair">{"".join(plots)}</div>{key}</figure>'
    )


def _rank(steps: Sequence[Step], i: int) -> int:
    """Of a step among those of its target."""
    return sum(1 for step in steps[:i] if step[0] == steps[i][0])


def _colour(run: Run, steps: Sequence[Step], i: int) -> str:
    which = list(run.targets).index(steps[i][0])
    return f"t{which % NUM_COLOURS} o{_rank(steps, i) % NUM_COLOURS}"


def _step_name(run: Run, step: Step) -> str:
    callers = f"{step[1]} caller{'s' if step[1] > 1 else ''}"
    return callers if len(run.targets) == 1 else f"{step[0]}, {callers}"


def _peers(run: Run) -> str:
    rows = ratios(run)
    if len(run.targets) < 2 or not rows:
        return ""
    first, *others = run.targets
    head = "".join(f"<th>{escape(name)}</th>" for name in ("callers", first, *others))
    body = []
    for row in rows:
        cells = [f"<td>{row.num_callers}</td><td>{_value(row.figure, row.first)}</td>"]
        for other in row.others:
            if other.value is None:
                cells.append("<td>–</td>")
                continue
            ratio = "" if other.ratio is None else f" <small>{number(other.ratio)} ×</small>"
            css = "good" if other.ratio and other.ratio > 1 else "bad" if other.ratio else ""
            cells.append(f'<td class="{css}">{_value(row.figure, other.value)}{ratio}</td>')
        body.append(f"<tr><td>{FIGURES[row.figure].title}</td>{''.join(cells)}</tr>")
    return (
        "<h2>Beside its peers</h2><p>Medians of one run in which the servers took turns with the same "
        "callers saying the same "
        "words; × is how many times as long as the first.</p>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def _objectives(objectives: Slo | None, verdicts: Mapping[Step, Verdict]) -> str:
    if objectives is None or not verdicts:
        return ""
    head = "".join(f"<th>{escape(t)}<br>{n} ×</th>" for t, n in verdicts)
    body = []
    for i, objective in enumerate(objectives.objective):
        cells = []
        for verdict in verdicts.values():
            finding = verdict.findings[i]
            css = "" if finding.measured is None else "good" if finding.is_kept else "bad"
            shown = (
                f"{finding.measured:.1%}"
                if objective.at is None and finding.measured is not None
                else number(finding.measured)
            )
            cells.append(f'<td class="{css}">{shown}</td>')
        body.append(f"<tr><td>{escape(objective.words)}</td>{''.join(cells)}</tr>")
    last = "".join(
        f'<td><span class="verdict {v.outcome.name.lower()}">{v.outcome.name.lower()}</span></td>'
        for v in verdicts.values()
    )
    reasons = "; ".join(
        f"{t}, {n} callers: {reason}" for (t, n), v in verdicts.items() for reason in v.reasons
    )
    return (
        f"<h2>Objectives: {escape(objectives.name)}</h2><p>{escape(objectives.description)}</p>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(body)}<tr><td></td>{last}</tr></table></div>'
        + (f"<p>{escape(reasons)}</p>" if reasons else "")
    )


def _earlier(run: Run, earlier: Run | None) -> str:
    if earlier is None:
        return ""
    body = []
    for c in changes(earlier, run):
        css = {"better": "good", "worse": "bad"}.get(c.word, "")
        body.append(
            f"<tr><td>{FIGURES[c.figure].title}</td><td>{escape(c.target)}</td><td>{c.num_callers}</td>"
            f"<td>{number(c.before.p50)} → {number(c.after.p50)}</td><td>{number(c.before.p95)} → "
            f"{number(c.after.p95)}</td>"
            f"<td>{c.before.count} → {c.after.count}</td><td class='{css}'>{c.word}</td></tr>"
        )
    return (
        f"<h2>Against the run of {escape(earlier.started_at)}</h2><p>A difference is named when chance "
        f"would hardly make it "
        "(rank test, three standard deviations). Between runs the machine may have changed.</p>"
        '<div class="scroll"><table><tr><th></th><th>server</th><th>callers</th><th>p50</th><th>p95</th>'
        "<th>turns</th><th></th></tr>"
        f"{''.join(body)}</table></div>"
    )


def _table(run: Run) -> str:
    steps = run.steps
    head = "".join(f"<th>{escape(_step_name(run, step))}</th>" for step in steps)
    body = []
    for figure in FIGURES.values():
        cells = []
        for step in steps:
            summary = summarize(values_of(run.of(*step), figure.name))
            cells.append(
                "<td>–</td>"
                if summary is None
                else f"<td>{number(summary.p50)} <small>{number(summary.p95)} · {number(summary.p99)}</small></td>"
            )
        if any(cell != "<td>–</td>" for cell in cells):
            unit = f" <small>{figure.unit}</small>"
            body.append(f"<tr><td>{figure.title}{unit}</td>{''.join(cells)}</tr>")
    for name, title in SHARES.items():
        shares = [share(run.of(*step), name) for step in steps]
        cells = ["<td>–</td>" if s is None else f"<td>{s:.1%}</td>" for s in shares]
        body.append(f"<tr><td>{title}</td>{''.join(cells)}</tr>")
    body.append(f"<tr><td>turns</td>{''.join(f'<td>{len(run.of(*s))}</td>' for s in steps)}</tr>")
    levels = [run.level(*step) for step in steps]
    lags = "".join(f"<td>{number(v.generator.lag_p99_ms) if v else '–'}</td>" for v in levels)
    lags = "".join(f"<td>{number(v.generator.lag_p99_ms) if v else '–'}</td>" for v in levels)
    body.append(f"<tr><td>load generator’s loop lag, p99 <small>ms</small></td>{lags}</tr>")
    loads = "".join(f"<td>{number((v and v.load_average) or None)}</td>" for v in levels)
    body.append(f"<tr><td>load average of its machine</td>{loads}</tr>")
    return (
        "<h2>All figures</h2><p>p50, then p95 · p99. Milliseconds after the caller’s last sample unless an "
        "arrow says from where.</p>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def _errors(run: Run) -> str:
    counts: dict[str, int] = {}
    for turn in run.turns:
        if turn.is_failed:
            words = "; ".join(turn.errors) or f"{turn.status} {turn.reason or ''}".strip()
            key = f"{turn.target}, {turn.num_callers} callers: {words}"
            counts[key] = counts.get(key, 0) + 1
    for level in run.levels:
        for words in level.call_errors:
            key = f"{level.target}, {level.num_callers} callers, call: {words}"
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda item: -item[1])[:MOST_ERRORS]
    rows = "".join(f"<tr><td>{escape(words)}</td><td>{n}</td></tr>" for words, n in most)
    return f'<h2>What failed</h2><div class="scroll"><table>{rows}</table></div>'


def _method(run: Run) -> str:
    return (
        "<footer><h2>How it was measured</h2><p>Recorded speech is sent in real time, a message whenever "
        "its sound would have been "
        "recorded, silence included, as from an open microphone. Zero is the moment of the last sample "
        "above −35 dB of the loudest. "
        "Sound is heard through a simulated player that starts with 80 ms in hand and again after every "
        "hole; audible is the first "
        "sample above −50 dBFS. A turn without sound counts as infinitely late. Percentiles are values that "
        "occurred (nearest rank). "
        f"Seed {run.seed}.</p></footer>"
    )


def _key(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<span><i style="--b:{colour}"></i>{escape(words)}</span>' for colour, words in entries
    )
    return f'<div class="key">{items}</div>'


def _value(figure: str, value: float) -> str:
    if FIGURES[figure].unit == "ms":
        return milliseconds(value)
    return "never" if math.isinf(value) else number(value)


def shorten(text: str, most: int = 80) -> str:
    """The beginning of a text, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= most else words[: most - 1] + "…"
