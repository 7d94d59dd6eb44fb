"""Plots as inline SVG: scales, axes, lines, bars; colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 760


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low or 1)
        return round(self.start + part * (self.end - self.start), 2)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points in order of x."""

    title: str
    points: Sequence[tuple[float, float]]
    css: str


@dataclass(slots=True)
class Svg:
    """Pieces of a drawing of a fixed size."""

    width: float
    height: float
    title: str
    pieces: list[str] = field(default_factory=list)

    def add(self, tag: str, css: str = "", content: str = "", **attributes: float | str) -> None:
        names = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
        mark = f' class="{css}"' if css else ""
        self.pieces.append(f"<{tag}{mark}{names}>{content}</{tag}>")

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start") -> None:
        self.add("text", css, escape(words), x=x, y=y, text_anchor=anchor)

    def __str__(self) -> str:
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">'
        return head + "".join(self.pieces) + "</svg>"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from the first at or above `low` to the last at or below `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def milliseconds(value: float) -> str:
    """`850 ms`, `1.2 s`, `12 s`."""
    if not math.isfinite(value):
        return "never"
    if abs(value) < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if abs(value) < 10_000 else f"{value / 1000:.0f} s"


def grid_x(
    svg: Svg, scale: Scale, top: float, bottom: float, words: Callable[[float], str]
) -> None:
    """Vertical lines with their values below."""
    for value in ticks(scale.low, scale.high):
        x = scale(value)
        svg.add("line", "zero" if value == 0 else "grid", x1=x, x2=x, y1=top, y2=bottom)
        svg.text(x, bottom + 16, words(value), "tick", "middle")


def grid_y(
    svg: Svg, scale: Scale, left: float, right: float, words: Callable[[float], str]
) -> None:
    """Horizontal lines with their values at the left."""
    for value in ticks(scale.low, scale.high, 5):
        y = scale(value)
        svg.add("line", "grid", x1=left, x2=right, y1=y, y2=y)
        svg.text(left - 8, y + 4, words(value), "tick", "end")


def line(svg: Svg, points: Sequence[tuple[float, float]], css: str) -> None:
    """A polyline through pixels."""
    svg.add("polyline", css, points=" ".join(f"{x:g},{y:g}" for x, y in points))


def distribution(
    title: str, series: Sequence[Series], width: float = 372, height: float = 210
) -> str:
    """Share of turns that were answered by then, one rising line per series; x and y of the points: value, share."""
    svg = Svg(width, height, title)
    finite = [x for s in series for x, _ in s.points if math.isfinite(x)]
    if not finite:
        return ""
    low, high = min(0.0, *finite), max(finite)
    x_scale = Scale(low, high + 0.04 * (high - low), 40, width - 10)
    y_scale = Scale(0, 1, height - 26, 28)
    svg.text(0, 13, title, "plot-title")
    grid_x(svg, x_scale, 28, height - 26, milliseconds)
    for part in (0.0, 0.5, 0.95):
        svg.add("line", "grid", x1=40, x2=width - 10, y1=y_scale(part), y2=y_scale(part))
        svg.text(34, y_scale(part) + 4, f"{part:.0%}", "tick", "end")
    for one in series:
        corners: list[tuple[float, float]] = []
        before = 0.0
        for x, y in one.points:
            if math.isfinite(x):
                corners += [(x_scale(x), y_scale(before)), (x_scale(x), y_scale(y))]
                before = y
        line(svg, corners, f"line {one.css}")
    return str(svg)


def against(title: str, series: Sequence[Series], limit: float | None, height: float = 280) -> str:
    """Latency against the number of callers; equal steps between the numbers that were measured."""
    numbers = sorted({x for s in series for x, _ in s.points})
    finite = [y for s in series for _, y in s.points if math.isfinite(y)]
    if not finite:
        return ""
    high = max([*finite, limit or 0]) * 1.08
    svg = Svg(WIDTH, height, title)
    right = WIDTH - 150
    place = {n: 60 + (right - 80) * (i + 0.5) / len(numbers) + 10 for i, n in enumerate(numbers)}
    y_scale = Scale(0, high, height - 34, 12)
    grid_y(svg, y_scale, 52, right, milliseconds)
    for n, x in place.items():
        svg.text(x, height - 14, f"{n:g}", "tick", "middle")
    svg.text((60 + right) / 2, height - 1, "callers at once", "tick", "middle")
    labels: list[tuple[float, str, str]] = []
    if limit is not None:
        svg.add("line", "limit", x1=52, x2=right, y1=y_scale(limit), y2=y_scale(limit))
        labels.append((y_scale(limit) + 4, f"objective {milliseconds(limit)}", "limit-text"))
    for one in series:
        points = [(place[x], y_scale(y)) for x, y in one.points if math.isfinite(y)]
        if not points:
            continue
        line(svg, points, f"line {one.css}")
        for (x, y), (n, value) in zip(points, one.points, strict=False):
            tip = f"<title>{escape(one.title)}, {n:g} callers: {milliseconds(value)}</title>"
            svg.add("circle", f"dot {one.css}", tip, cx=x, cy=y, r=3.5)
        labels.append((points[-1][1] + 4, one.title, one.css))
    for y, words, css in spread(labels, 14):
        svg.text(right + 8, y, words, f"label fill {css}")
    return str(svg)


def spread(labels: list[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Move labels down so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for y, words, css in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, words, css))
    return placed


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of stages one after the other, in milliseconds."""

    title: str
    stages: Sequence[tuple[str, float, str]]
    """Words, duration, css."""
    note: str = ""


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Stacked horizontal bars on one axis."""
    row_height, top, left = 30, 6, 170
    height = top + row_height * len(rows) + 26
    svg = Svg(WIDTH, height, title)
    high = max(sum(ms for _, ms, _ in row.stages) for row in rows)
    x_scale = Scale(0, high * 1.02, left, WIDTH - 90)
    grid_x(svg, x_scale, top, height - 24, milliseconds)
    for i, row in enumerate(rows):
        y = top + i * row_height + 5
        svg.text(left - 10, y + 14, row.title, "label", "end")
        at = 0.0
        for words, duration, css in row.stages:
            x, end = x_scale(at), x_scale(at + duration)
            tip = f"<title>{escape(words)}: {milliseconds(duration)}</title>"
            svg.add(
                "rect",
                f"stage {css}",
                tip,
                x=x,
                y=y,
                width=max(0.0, round(end - x - 1, 2)),
                height=20,
                rx=2,
            )
            if end - x > 52:
                svg.text((x + end) / 2, y + 14, milliseconds(duration), "in-bar", "middle")
            at += duration
        svg.text(x_scale(at) + 8, y + 14, row.note or milliseconds(at), "label")
    return str(svg)
