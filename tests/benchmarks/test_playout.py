"""Laws of the simulated player."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.playout import Playout

RATE = 1000  # one sample per millisecond keeps the examples readable
ARRIVALS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), min_size=1, max_size=20)


def play(gaps_ms: list[tuple[int, int]], prebuffer_ms: int = 0, shift_s: float = 0.0) -> Playout:
    """Packets given as (milliseconds since the one before, samples)."""
    playout, now_ms = Playout(prebuffer_ms / 1000, RATE), 0
    for gap_ms, count in gaps_ms:
        now_ms += gap_ms
        playout.push_samples(shift_s + now_ms / 1000, count)
    playout.finish(shift_s + now_ms / 1000)
    return playout


def end_s(playout: Playout) -> float:
    assert playout.end_s is not None
    return playout.end_s


@given(ARRIVALS, st.integers(0, 500))
def test_everything_is_heard_once_and_holes_fill_the_rest(
    arrivals: list[tuple[int, int]], prebuffer_ms: int
) -> None:
    playout = play(arrivals, prebuffer_ms)
    total = sum(count for _, count in arrivals)
    assert playout.start_s is not None
    assert playout.heard_samples(end_s(playout) + 1) == playout.num_samples == total
    holes = sum(hole.duration_s for hole in playout.underruns)
    assert end_s(playout) - playout.start_s == pytest.approx(total / RATE + holes)
    assert all(hole.duration_s > 0 for hole in playout.underruns)


@given(ARRIVALS, st.integers(0, 500))
def test_nothing_is_heard_before_it_arrived(
    arrivals: list[tuple[int, int]], prebuffer_ms: int
) -> None:
    playout = play(arrivals, prebuffer_ms)
    now_ms, received = 0, 0
    for gap_ms, count in arrivals:
        # Until just before this packet, no more than the packets before it.
        now_ms += gap_ms
        assert playout.heard_samples(now_ms / 1000 - 1e-6) <= received
        received += count


@given(ARRIVALS, st.floats(-100, 1e6, allow_nan=False))
def test_only_differences_of_time_matter(arrivals: list[tuple[int, int]], shift_s: float) -> None:
    here, there = play(arrivals), play(arrivals, shift_s=shift_s)
    assert end_s(there) - shift_s == pytest.approx(end_s(here), abs=1e-6 * max(1, abs(shift_s)))


@given(ARRIVALS, st.data())
def test_without_prebuffer_delay_makes_nothing_earlier(
    arrivals: list[tuple[int, int]], data: st.DataObject
) -> None:
    late = data.draw(st.integers(0, len(arrivals) - 1))
    by_ms = data.draw(st.integers(0, 300))
    delayed = [(g + by_ms if i == late else g, n) for i, (g, n) in enumerate(arrivals)]
    assert end_s(play(delayed)) >= end_s(play(arrivals)) - 1e-9


@given(st.lists(st.integers(1, 300), min_size=1, max_size=10), st.integers(0, 500))
def test_what_comes_at_once_has_no_hole(counts: list[int], prebuffer_ms: int) -> None:
    assert play([(0, n) for n in counts], prebuffer_ms).underruns == []


def test_a_late_packet_is_a_hole_as_long_as_it_was_late() -> None:
    playout = play([(0, 100), (150, 100)])
    assert [(h.start_s, round(h.duration_s, 9)) for h in playout.underruns] == [(0.1, 0.05)]


def test_the_prebuffer_is_waited_for_at_the_start_and_after_a_hole() -> None:
    playout = play([(0, 50), (20, 50), (200, 50), (30, 50)], prebuffer_ms=100)
    assert playout.start_s == 0.02
    assert [(h.start_s, h.duration_s) for h in playout.underruns] == [
        (pytest.approx(0.12), pytest.approx(0.13))
    ]


def test_audible_is_when_the_first_loud_sample_is_played() -> None:
    playout = Playout(0.0, RATE)
    quiet = np.full(100, 50, np.int16)  # −56 dBFS
    playout.push(1.0, quiet.tobytes())
    assert playout.first_audible_s is None
    playout.push(1.5, np.concatenate((quiet[:30], np.full(20, 900, np.int16))).tobytes())
    assert playout.first_audible_s == pytest.approx(1.53)  # 0.4 s of hole, 30 ms of quiet


def test_the_quietest_sample_is_no_overflow() -> None:
    playout = Playout(0.0, RATE)
    playout.push(0.0, np.array([-32768], np.int16).tobytes())
    assert playout.first_audible_s == 0.0


def test_time_that_runs_backwards_is_refused() -> None:
    playout = Playout(0.0, RATE)
    playout.push_samples(1.0, 10)
    with pytest.raises(ValueError, match="backwards"):
        playout.push_samples(0.9, 10)
