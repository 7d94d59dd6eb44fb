"""What counts as heard never goes back, never runs ahead of the sound, and is everything in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.engine.alignment import (
    MARGIN_SAMPLES,
    Sound,
    SpeakingRate,
    heard_tokens,
    spoken_weight,
)

PER_CODE = 480
WEIGHTS = st.lists(st.floats(0, 30), max_size=40)
SAMPLES = st.integers(0, 500_000)


@given(WEIGHTS, SAMPLES, SAMPLES, SAMPLES, st.booleans())
def test_more_sound_heard_never_means_less_text(
    weights: list[float], first: int, second: int, made: int, is_whole: bool
) -> None:
    rate = SpeakingRate()
    earlier, later = sorted((first, second))
    kept = [
        heard_tokens(weights, Sound(n, made, is_whole, PER_CODE), rate) for n in (earlier, later)
    ]
    assert 0 <= kept[0] <= kept[1] <= len(weights)


@given(WEIGHTS, SAMPLES)
def test_who_heard_the_whole_reply_heard_all_of_it(weights: list[float], made: int) -> None:
    assert heard_tokens(weights, Sound(made, made, True, PER_CODE), SpeakingRate()) == len(weights)


@given(WEIGHTS.filter(lambda w: sum(w) > 1), st.integers(0, MARGIN_SAMPLES))
def test_within_the_margin_nothing_that_is_said_is_certain(
    weights: list[float], heard: int
) -> None:
    sound = Sound(heard, 10**9, True, PER_CODE)
    assert sum(weights[: heard_tokens(weights, sound, SpeakingRate())]) == 0


@given(WEIGHTS, SAMPLES, st.integers(0, 500_000))
def test_an_unfinished_reply_is_taken_to_be_no_faster_than_a_finished_one(
    weights: list[float], heard: int, made: int
) -> None:
    running = heard_tokens(weights, Sound(heard, made, False, PER_CODE), SpeakingRate())
    if heard < made:
        assert running <= heard_tokens(weights, Sound(heard, made, True, PER_CODE), SpeakingRate())


def test_a_reply_that_shows_itself_slower_than_the_others_is_believed() -> None:
    weights, rate = [1.0] * 100, SpeakingRate()
    rate.learn(100_000, 100)
    usual = heard_tokens(weights, Sound(60_000, 70_000, False, PER_CODE), rate)
    slow = heard_tokens(weights, Sound(60_000, 300_000, False, PER_CODE), rate)
    assert slow < usual / 2


@pytest.mark.parametrize(
    ("text", "letters"), [("seven", 5), ("7", 4.5), (" a b ", 2), ("Hi, you.", 15), ("é", 2), ("日本", 6), ("", 0)]
)  # fmt: skip
def test_weights_follow_what_is_said(text: str, letters: float) -> None:
    assert spoken_weight(text) == letters
