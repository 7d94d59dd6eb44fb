"""Drawn scenes with questions about them: what seeing is taught and judged on.

`scene(seed, index)` is a pure function. A scene is one to four things on different places of a plain or shaded
background, seen through a camera that blurs, changes the light and adds noise; `moving` scenes are four frames (two
seconds) in which one thing moves. In those of `changing(seed, index)` a thing takes another colour every second, and
the question is which it had when somebody said "now". `kept_out` ones are drawn in ways nothing is trained on:
checkered, with edges.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from recipes.tiny.exchanges import Exchange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    Box = tuple[float, float, float]

COLOURS = {
    "red": (205, 40, 40), "blue": (45, 75, 205), "green": (45, 155, 60), "yellow": (235, 210, 50),
    "white": (245, 245, 245), "black": (25, 25, 25), "orange": (240, 135, 35), "purple": (130, 60, 165),
    "brown": (120, 75, 40), "pink": (240, 145, 185), "gray": (128, 128, 128),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "rectangle", "ring")
SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIZES = ((252, 196), (224, 224), (196, 252), (280, 168))  # of width and height, multiples of 28
SMALL_SIZES = ((140, 112), (112, 140), (168, 112), (140, 140))  # a third as many rows
HELD_UP = 0.5  # so often one thing is held up to the camera: large, in the middle
COLUMNS, ROWS = ("left", "middle", "right"), ("top", "middle", "bottom")
NUMBERS = ("zero", "one", "two", "three", "four")
DIRECTIONS = {
    (1, 0): "from left to right", (-1, 0): "from right to left",
    (0, 1): "from top to bottom", (0, -1): "from bottom to top",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """Something drawn: a shape or a sign, its colour, and its place on a grid of three by three."""

    kind: str
    colour: str
    column: int
    row: int

    @property
    def name(self) -> str:
        """As it is spoken of: `red circle`, `blue letter K`, `green number 7`."""
        if self.kind in SHAPES:
            return f"{self.colour} {self.kind}"
        return f"{self.colour} {'number' if self.kind.isdigit() else 'letter'} {self.kind}"

    @property
    def place(self) -> str:
        column, row = COLUMNS[self.column], ROWS[self.row]
        if column == row:
            return "in the middle"
        if row == "middle":
            return f"on the {column}"
        return f"at the {row}" if column == "middle" else f"at the {row} {column}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Frames uint8 [H, W, 3] half a second apart (one: a still picture), and questions about them.

    `boxes` are left, top and side in pixels of each thing, frame by frame; `figures` say what belongs to a thing, and
    where in it (`_figure`); `way` is where a moving one goes.
    """

    frames: list[Picture]
    questions: list[Exchange]
    things: list[Thing]
    boxes: list[list[Box]]
    figures: list[Picture]
    way: str = ""
    moment: float | None = None  # seconds at which "now" is said


def scene(
    seed: int, index: int, *, moving: float = 0.25, small: float = 0.0, kept_out: bool = False
) -> Scene:
    """Return number `index` of the endless list named by `seed`; shares `moving` and `small` are videos, and small."""
    rng = random.Random(f"scene/{seed}/{index}")
    is_moving, sizes = rng.random() < moving, SMALL_SIZES if rng.random() < small else SIZES
    if is_moving:
        return _moving(rng, sizes[0], kept_out)
    return _still(rng, rng.choice(sizes), kept_out)


def _still(rng: random.Random, size: tuple[int, int], kept_out: bool) -> Scene:
    places = rng.sample([(c, r) for c in range(3) for r in range(3)], rng.choice((1, 1, 2, 3, 4)))
    if rng.random() < HELD_UP:
        places = [(1, 1)]
    alike = rng.choice(SHAPES) if rng.random() < 0.4 else ""  # so that there is something to count
    background = rng.choice(list(COLOURS))
    colours = [name for name in COLOURS if name != background]
    signs = len(places) == 1 and rng.random() < 0.25
    things = [
        Thing(
            rng.choice(SIGNS) if signs else alike or rng.choice(SHAPES), rng.choice(colours), c, r
        )
        for c, r in places
    ]
    frame, figure, boxes = _shown(rng, things, background, size, kept_out)
    return Scene([frame], _questions(rng, things), things, [boxes], [figure])


def picture(seed: int, things: list[Thing], background: str) -> Picture:
    """Return a kept-out picture of given things."""
    frame, _, _ = _shown(random.Random(f"picture/{seed}"), things, background, SIZES[0], True)
    return frame


def _shown(
    rng: random.Random, things: list[Thing], background: str, size: tuple[int, int], kept_out: bool
) -> tuple[Picture, Picture, list[Box]]:
    """A picture of things, its figure, and their boxes."""
    width, height = size
    canvas = _background(rng, width, height, background, kept_out)
    boxes = [_box(rng, thing, width, height, alone=len(things) == 1) for thing in things]
    figure = Image.new("L", canvas.size)
    for thing, box in zip(things, boxes, strict=True):
        _draw(canvas, figure, thing, box, rng, kept_out)
    return _camera(rng, canvas), _figure(figure, boxes), boxes


def _figure(drawn: Image.Image, boxes: list[Box]) -> Picture:
    """What is drawn (255), and for each pixel of a box how far from its left and top it is: 1 … 255, else 0."""
    figure = np.zeros((*drawn.size[::-1], 3), np.uint8)
    figure[..., 0] = drawn
    height, width = figure.shape[:2]
    for x, y, side in boxes:
        left, top = max(0, round(x)), max(0, round(y))
        right, bottom = min(width, round(x + side)), min(height, round(y + side))
        figure[top:bottom, left:right, 1] = 1 + 254 * ((np.arange(left, right) - x) / side).clip(
            0, 1
        )
        along = 1 + 254 * ((np.arange(top, bottom) - y) / side).clip(0, 1)
        figure[top:bottom, left:right, 2] = along[:, None]
    return figure


def _moving(rng: random.Random, size: tuple[int, int], kept_out: bool) -> Scene:
    width, height = size
    background = rng.choice(list(COLOURS))
    colour = rng.choice([name for name in COLOURS if name != background])
    (dx, dy), way = rng.choice(list(DIRECTIONS.items()))
    thing = Thing(rng.choice(SHAPES), colour, 1, 1)
    side = rng.uniform(0.28, 0.5) * height
    across = rng.uniform(0.3, 0.7)
    base, frames, boxes = _background(rng, width, height, background, kept_out), [], []
    figures = []
    look = rng.randrange(1 << 30)
    for i in range(4):
        along = 0.2 + 0.2 * i  # from one side to the other in two seconds
        x = (along if dx > 0 else 1 - along) if dx else across
        y = (along if dy > 0 else 1 - along) if dy else across
        canvas = base.copy()
        box = (x * width - side / 2, y * height - side / 2, side)
        boxes.append([box])
        figure = Image.new("L", canvas.size)
        _draw(canvas, figure, thing, box, random.Random(look), kept_out)
        figures.append(_figure(figure, [box]))
        frames.append(_camera(random.Random(look), canvas))
    asked = rng.choice(("Which way does it move?", "Where is it going?", "How does it move?"))
    return Scene(
        frames,
        [
            Exchange(asked, f"It is moving {way}.", way),
            Exchange(
                f"What color is the {thing.kind}?", f"The {thing.kind} is {colour}.", f"is {colour}"
            ),
            Exchange("What is moving?", f"A {thing.name} is moving.", thing.name),
        ],
        [thing],
        boxes,
        figures,
        way.rsplit(maxsplit=1)[1],
    )


def changing(seed: int, index: int, *, small: float = 0.0, kept_out: bool = False) -> Scene:
    """Return a video of four to six seconds from the endless list of changing things."""
    rng = random.Random(f"changing/{seed}/{index}")
    width, height = (SMALL_SIZES if rng.random() < small else SIZES)[0]
    background = rng.choice(list(COLOURS))
    colours = rng.sample([name for name in COLOURS if name != background], rng.randint(4, 6))
    kind, base = rng.choice(SHAPES), _background(rng, width, height, background, kept_out)
    side, look = rng.uniform(0.4, 0.7) * height, rng.randrange(1 << 30)
    box = ((width - side) / 2, (height - side) / 2, side)
    frames = []
    for colour in colours:
        canvas, figure = base.copy(), Image.new("L", base.size)
        _draw(canvas, figure, Thing(kind, colour, 1, 1), box, random.Random(look), kept_out)
        frames += [_camera(random.Random(look), canvas)] * 2  # a second
    second = rng.randrange(len(colours))
    told = colours[second]
    asked = rng.choice(
        ("What color was it when I said now?", "Which color did you see when I said now?")
    )
    return Scene(
        frames,
        [Exchange(asked, f"It was {told}.", told)],
        [],
        [],
        [],
        moment=second + rng.uniform(0.05, 0.5),
    )


def _questions(rng: random.Random, things: list[Thing]) -> list[Exchange]:
    """Everything that can be asked without doubt, in random order."""
    asked = [_all_things(things, rng)]
    for thing in things:
        others = [t for t in things if t is not thing]
        if thing.kind in SHAPES:
            asked += _about_shape(rng, thing, others)
        else:
            asked += _about_sign(rng, thing)
    kinds = [thing.kind for thing in things]
    kind = rng.choice(kinds)
    if kind in SHAPES:
        number = NUMBERS[kinds.count(kind)]
        what = kind if number == "one" else plural(kind)
        text = rng.choice(("How many {} are there?", "How many {} do you see?"))
        asked.append(Exchange(text.format(plural(kind)), f"I see {number} {what}.", number))
    rng.shuffle(asked)
    return asked


def _about_sign(rng: random.Random, thing: Thing) -> list[Exchange]:
    """A letter or a digit stands alone."""
    what = "number" if thing.kind.isdigit() else "letter"
    text = rng.choice((f"What {what} is it?", f"Which {what} do you see?"))
    return [
        Exchange(text, f"It is the {what} {thing.kind}.", thing.kind),
        _colour_of(rng, what, thing.colour),
    ]


def _about_shape(rng: random.Random, thing: Thing, others: list[Thing]) -> list[Exchange]:
    """Its colour, its kind and its place, each if nothing else fits the question."""
    asked = []
    if thing.kind not in [t.kind for t in others]:
        asked.append(_colour_of(rng, thing.kind, thing.colour))
    if thing.colour not in [t.colour for t in others]:
        text = rng.choice(("What shape is {}?", "Which shape is {}?")).format(thing.colour)
        asked.append(Exchange(text, f"The {thing.kind} is {thing.colour}.", f"The {thing.kind}"))
    if (thing.kind, thing.colour) not in [(t.kind, t.colour) for t in others]:
        place = f"The {thing.name} is {thing.place}."
        asked.append(Exchange(f"Where is the {thing.name}?", place, thing.place))
    return asked


def _colour_of(rng: random.Random, what: str, colour: str) -> Exchange:
    text = rng.choice(("What color is the {}?", "Which color does the {} have?"))
    return Exchange(text.format(what), f"The {what} is {colour}.", f"is {colour}")


def _all_things(things: list[Thing], rng: random.Random) -> Exchange:
    """Name everything, from the top left to the bottom right."""
    ordered = sorted(things, key=lambda t: (t.row, t.column))
    named = [f"a{'n' if t.name[0] in 'aeo' else ''} {t.name}" for t in ordered]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    text = rng.choice(("What do you see?", "What can you see?", "Tell me what you see."))
    return Exchange(text, f"I see {listed}.", listed)


def plural(kind: str) -> str:
    return kind + ("es" if kind == "cross" else "s")


def _box(rng: random.Random, thing: Thing, width: int, height: int, *, alone: bool) -> Box:
    """Where a thing lies: in its ninth of the picture, or larger if it is alone in the middle."""
    side = rng.uniform(0.7, 1.0) * min(width, height) / 3
    if alone and thing.column == thing.row == 1:
        side *= rng.uniform(1.0, 2.6)
    x = (thing.column + 0.5 + rng.uniform(-0.1, 0.1)) * width / 3 - side / 2
    y = (thing.row + 0.5 + rng.uniform(-0.1, 0.1)) * height / 3 - side / 2
    return x, y, side


def _background(
    rng: random.Random, width: int, height: int, colour: str, kept_out: bool
) -> Image.Image:
    base = np.array(_varied(rng, COLOURS[colour]), np.float32)
    other = base + rng.uniform(-30, 30)
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * math.pi)
    if kept_out and rng.random() < 0.5:
        share = ((x // 24 + y // 24) % 2).astype(np.float32)
        other = base + rng.choice((-18, 18))
    else:
        share = 0.5 + 0.5 * (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))
    blended = base + (other - base) * share[..., None]
    return Image.fromarray(blended.clip(0, 255).astype(np.uint8))


def _draw(
    canvas: Image.Image,
    figure: Image.Image,
    thing: Thing,
    box: Box,
    rng: random.Random,
    kept_out: bool,
) -> None:
    """Draw a thing in its colour, and where it is."""
    fill, turn = _varied(rng, COLOURS[thing.colour]), rng.uniform(-0.25, 0.25)
    _paint(canvas, thing, box, fill, turn)
    _paint(figure, thing, box, 255, turn)
    if kept_out and thing.kind == "circle" and rng.random() < 0.5:
        edge = tuple(int(0.6 * c) for c in fill)
        x, y, side = box
        ImageDraw.Draw(canvas).ellipse((x, y, x + side, y + side), outline=edge, width=2)


def _paint(
    canvas: Image.Image, thing: Thing, box: Box, fill: int | tuple[int, ...], turn: float
) -> None:
    x, y, side = box
    pen = ImageDraw.Draw(canvas)
    if thing.kind not in SHAPES:
        font = ImageFont.load_default(side * 1.1)
        pen.text((x + side / 2, y + side / 2), thing.kind, fill=fill, font=font, anchor="mm")
    elif thing.kind in ("circle", "ring"):
        width = max(1, int(0.22 * side)) if thing.kind == "ring" else 0
        bounds = (x, y, x + side, y + side)
        pen.ellipse(
            bounds, fill=None if width else fill, outline=fill if width else None, width=width
        )
    else:
        centre = (x + side / 2, y + side / 2)
        pen.polygon(
            [_turned(point, turn, centre, side) for point in _outline(thing.kind)], fill=fill
        )


def _outline(kind: str) -> list[tuple[float, float]]:
    """Corners of a shape around the origin, half a side away at most."""
    if kind == "square":
        return [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)]
    if kind == "rectangle":
        return [(-0.5, -0.25), (0.5, -0.25), (0.5, 0.25), (-0.5, 0.25)]
    if kind == "triangle":
        return [(0, -0.5), (0.5, 0.4), (-0.5, 0.4)]
    if kind == "cross":
        a, b = 0.5, 0.17
        quarter = [(b, -a), (b, -b), (a, -b)]
        return [
            p for k in range(4) for p in [_turned(q, k * math.pi / 2, (0, 0), 1) for q in quarter]
        ]
    if kind == "star":
        radii = (0.52, 0.21)
        return [
            (
                radii[i % 2] * math.sin(i * math.pi / 5),
                -radii[i % 2] * math.cos(i * math.pi / 5),
            )
            for i in range(10)
        ]
    angles = [2 * math.pi * i / 40 for i in range(40)]  # a heart
    return [
        (
            0.031 * 16 * math.sin(t) ** 3,
            -0.031
            * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in angles
    ]


def _turned(
    point: tuple[float, float], turn: float, centre: tuple[float, float], side: float
) -> tuple[float, float]:
    x, y = point
    c, s = math.cos(turn), math.sin(turn)
    return centre[0] + side * (c * x - s * y), centre[1] + side * (s * x + c * y)


def _varied(rng: random.Random, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, c + rng.randint(-14, 14))) for c in colour)
    return r, g, b


def _camera(rng: random.Random, canvas: Image.Image) -> Picture:
    """Blur, light and noise of a cheap camera."""
    if rng.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    light, level = rng.uniform(0.8, 1.12), rng.uniform(0, 7)
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, level, (*canvas.size[::-1], 3))
    return (np.asarray(canvas, np.float32) * light + noise).clip(0, 255).astype(np.uint8)
