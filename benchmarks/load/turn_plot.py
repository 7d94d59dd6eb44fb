"""One turn, stage by stage: what was said, what was waited for, the packets, and what was in the ear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.load.dialogue import LEAD_S
from benchmarks.load.figures import percentile
from benchmarks.load.playout import Playout
from benchmarks.load.plots import WIDTH, Scale, Svg, grid_x, milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.load.records import TurnRecord

RATE = 24_000
LEFT = 120
LANES = ("speech", "waiting", "packets", "buffered", "in the ear")
LANE_HEIGHT = 34
BEFORE_MS = 900.0
AFTER_MS = 1600.0
"""Shown of the reply."""
STAGES = (
    ("until the turn is decided", "decided_ms", "wait0"),
    ("to the first text", "first_text_ms", "wait1"),
    ("to the first audio byte", "first_audio_ms", "wait2"),
    ("to the first audible sample", "audible_ms", "wait3"),
)


def typical(turns: Sequence[TurnRecord]) -> TurnRecord | None:
    """The turn whose first audible sample is the median one; None when no turn has all stages."""
    whole = [
        t
        for t in turns
        if t.audible_ms is not None and t.decided_ms is not None and not t.is_failed
    ]
    if not whole:
        return None
    middle = percentile([t.audible_ms or 0 for t in whole], 50)
    return next(t for t in whole if t.audible_ms == middle)


def stages(turn: TurnRecord) -> list[tuple[str, float, float, str]]:
    """Words, start, end and css of each stage that the turn has, in order, without overlap."""
    found, at = [], 0.0
    for words, name, css in STAGES:
        until = getattr(turn, name)
        if until is not None and until >= at:
            found.append((words, at, until, css))
            at = until
    return found


def turn_plot(turn: TurnRecord, prebuffer_s: float, until_ms: float | None = None) -> str:
    """Draw a turn. `until_ms` ends the axis, so that several turns can share it."""
    height = len(LANES) * LANE_HEIGHT + 34
    svg = Svg(WIDTH, height, "one turn by stage")
    end_ms = until_ms or (turn.audible_ms or 0) + AFTER_MS
    x = Scale(-BEFORE_MS, end_ms, LEFT, WIDTH - 12)
    grid_x(svg, x, 4, height - 26, milliseconds)
    for lane, words in enumerate(LANES):
        svg.text(LEFT - 10, _middle(lane) + 4, words, "label", "end")
    _bar(svg, x, 0, -min(BEFORE_MS, 1000 * turn.speech_s), 0, "speech", "the caller speaks")
    for words, start, end, css in stages(turn):
        _bar(svg, x, 1, start, min(end, end_ms), css, f"{words}: {milliseconds(end - start)}")
        if x(end) - x(start) > 46:
            svg.text(
                (x(start) + x(end)) / 2,
                _middle(1) + 4,
                milliseconds(end - start),
                "in-bar",
                "middle",
            )
    for packet in turn.packets:
        if packet.at_ms <= end_ms:
            tall = min(1.0, packet.num_samples / RATE / 0.4) * 16 + 6
            tip = f"<title>{1000 * packet.num_samples / RATE:.0f} ms of sound at {packet.at_ms:.0f} ms</title>"
            svg.add(
                "rect",
                "packet",
                tip,
                x=x(packet.at_ms) - 1.5,
                y=_middle(2) + 11 - tall,
                width=3,
                height=tall,
                rx=1,
            )
    _hearing(svg, x, turn, prebuffer_s, end_ms)
    return str(svg)


def _hearing(svg: Svg, x: Scale, turn: TurnRecord, prebuffer_s: float, end_ms: float) -> None:
    """The playout over again, with the sound that is ahead of the ear above it."""
    playout = Playout(prebuffer_s)
    for packet in turn.packets:
        playout.push_samples(packet.at_ms / 1000, packet.num_samples)
    if not turn.packets or playout.start_s is None:
        return
    if turn.done_ms is not None and turn.done_ms >= turn.packets[-1].at_ms:
        playout.finish(turn.done_ms / 1000)
    start_ms = 1000 * playout.start_s
    holes = [(1000 * h.start_s, 1000 * (h.start_s + h.duration_s)) for h in playout.underruns]
    at = start_ms
    for hole_start, hole_end in [*holes, (1000 * (playout.end_s or 0), 0.0)]:
        if at < end_ms:
            _bar(svg, x, 4, at, min(hole_start, end_ms), "ear", "heard")
        if hole_end > hole_start and hole_start < end_ms:
            _bar(svg, x, 4, hole_start, min(hole_end, end_ms), "hole", "a hole in the sound")
        at = hole_end
        if hole_end == 0.0:
            break
    base, points = _middle(3) + 12, []
    num_steps = 240
    first = turn.packets[0].at_ms
    for k in range(num_steps + 1):
        at_ms = first + (end_ms - first) * k / num_steps
        received = sum(p.num_samples for p in turn.packets if p.at_ms <= at_ms)
        lead_s = max(0.0, (received - playout.heard_samples(at_ms / 1000)) / RATE)
        points.append((x(at_ms), base - 24 * min(1.0, lead_s / (3 * LEAD_S))))
    outline = " ".join(f"{px:g},{py:.1f}" for px, py in points)
    closed = f"{points[0][0]:g},{base:g} {outline} {points[-1][0]:g},{base:g}"
    svg.add(
        "polygon",
        "lead",
        "<title>sound received and not yet heard; full height is 3 s</title>",
        points=closed,
    )


def _middle(lane: int) -> float:
    return 4 + lane * LANE_HEIGHT + LANE_HEIGHT / 2


def _bar(svg: Svg, x: Scale, lane: int, start: float, end: float, css: str, tip: str) -> None:
    width = max(0.0, round(x(end) - x(start), 2))
    content = f"<title>{tip}</title>"
    svg.add(
        "rect",
        f"stage {css}",
        content,
        x=x(start),
        y=_middle(lane) - 11,
        width=width,
        height=22,
        rx=3,
    )
