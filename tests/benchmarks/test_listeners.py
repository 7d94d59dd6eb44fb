"""Laws of what listeners get: waits from the commit, holes per reply, shares while all replies run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.listeners import Hearing, Listener, hearing, jain_index

SECOND = 24_000
SHARES = st.lists(st.integers(0, 10**6), min_size=1, max_size=32)


def heard(*arrivals_ms: int, ended_ms: float | None = None, asked_ms: float = 0) -> Listener:
    """A reply that delivers a second of sound at each of these times."""
    listener = Listener(asked_ms)
    for at_ms in arrivals_ms:
        listener.hear(at_ms, SECOND)
    listener.end(max(arrivals_ms, default=asked_ms) if ended_ms is None else ended_ms)
    return listener


def test_first_sound_counts_from_the_commit() -> None:
    told = hearing([heard(300, asked_ms=100), heard(400, asked_ms=100), heard(700, asked_ms=100)])
    assert (told.first_p50_ms, told.first_p95_ms, told.spread) == (300, 600, 2)


def test_a_reply_without_sound_is_infinitely_late_and_not_left_out() -> None:
    told = hearing([heard(200), heard(ended_ms=500)])
    assert (told.first_p50_ms, told.num_silent) == (200, 1)
    assert math.isinf(told.first_p95_ms) and math.isinf(told.spread)


def test_sound_in_time_leaves_no_hole_and_late_sound_leaves_one() -> None:
    in_time, late, twice = heard(0, 1000, 1500), heard(0, 1001), heard(0, 2000, 4000)
    told = hearing([in_time, late, twice])
    assert (told.num_underruns, told.num_broken) == (3, 2)


def test_shares_count_only_while_all_replies_are_being_made() -> None:
    short, long = heard(100, 200), heard(150, 900, 1000, 1100)
    told = hearing([short, long])
    assert (told.least, told.most) == (2 / 3, 4 / 3)
    assert told.jain == pytest.approx(0.9)


def test_who_is_starved_until_the_others_end_shows() -> None:
    told = hearing([heard(100, 200), heard(200, 300)])
    starved = hearing([heard(100, 200), heard(201, 300)])
    assert (told.least, starved.least, starved.most, starved.jain) == (2 / 3, 0, 2, 0.5)


def test_replies_without_any_sound_are_treated_alike() -> None:
    told = hearing([heard(ended_ms=10), heard(ended_ms=20)])
    assert isinstance(told, Hearing)
    assert (told.jain, told.least, told.most, told.num_silent) == (1, 1, 1, 2)


@given(SHARES)
def test_jain_lies_between_one_nth_and_one(shares: list[int]) -> None:
    assert 1 / len(shares) - 1e-9 <= jain_index(shares) <= 1 + 1e-9


@given(st.integers(1, 32), st.integers(1, 10**6))
def test_jain_is_one_for_equal_shares_and_one_nth_for_one_winner(num: int, share: int) -> None:
    assert jain_index([share] * num) == pytest.approx(1)
    assert jain_index([share] + [0] * (num - 1)) == pytest.approx(1 / num)


def test_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="no shares"):
        jain_index([])
