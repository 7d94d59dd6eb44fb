"""Drawn scenes: reproducible, small enough for a camera's row, and with one answer to each question."""

from __future__ import annotations

import numpy as np

from recipes.tiny import tree
from recipes.tiny.scenes import COLOURS, DIRECTIONS, SHAPES, changing, scene

NUM = 150


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    for index in range(8):
        one, other = scene(1, index), scene(1, index)
        assert one.questions == other.questions
        assert all(np.array_equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))
    assert scene(1, 0).questions != scene(2, 0).questions


def test_pictures_need_no_resizing_and_videos_are_two_seconds() -> None:
    for index in range(NUM):
        shown = scene(3, index)
        assert len(shown.frames) in (1, 4)
        for frame in shown.frames:
            height, width, _ = frame.shape
            assert height % 28 == width % 28 == 0
            assert height * width <= tree.PIXELS["max_pixels"]


def test_every_answer_holds_its_key_and_is_the_only_one() -> None:
    for index in range(NUM):
        shown = scene(4, index)
        for question in shown.questions:
            assert question.key in question.reply
        asked = {q.question: q.reply for q in shown.questions}
        assert all(asked[q.question] == q.reply for q in shown.questions)


def test_what_is_asked_is_what_is_drawn() -> None:
    """The middle of a large thing alone has its colour; a thing that moves moves as said."""
    seen = 0
    for index in range(NUM):
        shown = scene(5, index)
        if len(shown.frames) == 4:
            centres = [_centre_of_change(shown.frames[i], shown.frames[0]) for i in (1, 3)]
            [way] = [w for w in DIRECTIONS.values() if w in shown.questions[0].reply]
            axis = 0 if way in ("from left to right", "from right to left") else 1
            forward = way in ("from left to right", "from top to bottom")
            assert (centres[1][axis] > centres[0][axis]) == forward
            seen += 1
        elif shown.things[0].kind == "square" and len(shown.things) == 1:
            [[(x, y, side)]] = shown.boxes
            inside = shown.frames[0][int(y + side / 2), int(x + side / 2)].astype(int)
            corner = shown.frames[0][-1 if y < 60 else 0, -1 if x < 60 else 0].astype(int)
            assert np.abs(inside - corner).sum() > 15
    assert seen > 10
    assert set(SHAPES) <= {t.kind for i in range(NUM) for t in scene(5, i).things}


def test_figures_tell_things_from_the_ground() -> None:
    for index in range(NUM):
        shown = scene(6, index, small=0.5)
        for frame, figure, boxes in zip(shown.frames, shown.figures, shown.boxes, strict=True):
            assert figure.shape == frame.shape
            inside = np.zeros(frame.shape[:2], bool)
            for x, y, side in boxes:
                # A turned square is wider than its side, and letters hang over.
                margin = 0.15 * side
                across = slice(max(0, int(x - margin)), int(x + side + margin) + 1)
                inside[max(0, int(y - margin)) : int(y + side + margin) + 1, across] = True
            assert (figure[..., 0] > 0).any()
            assert not (figure[..., 0] > 0)[~inside].any()


def test_a_changing_thing_has_another_colour_every_second() -> None:
    for index in range(20):
        shown = changing(3, index)
        middle = [frame[98, 126].astype(int) for frame in shown.frames]
        assert len(shown.frames) in (8, 10, 12)
        assert shown.moment is not None and 0 < shown.moment < len(shown.frames) / 2
        assert all(np.array_equal(a, b) for a, b in zip(middle[::2], middle[1::2], strict=True))
        [asked] = shown.questions
        assert asked.key in COLOURS and asked.key in asked.reply


def _centre_of_change(frame: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    """Middle (x, y) of where a frame differs most from the first one, on the new place's side."""
    change = np.abs(frame.astype(int) - first.astype(int)).sum(2) > 60
    y, x = np.nonzero(change)
    return float(x.mean()), float(y.mean())
