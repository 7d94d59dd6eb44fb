"""Laws of the percentiles, and what counts as what."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.compare import changes, rank_sum_z, ratios
from benchmarks.load.figures import percentile, share, summarize, values_of
from benchmarks.load.records import Packet
from tests.benchmarks.making import level, run, turn

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)
PERCENT = st.floats(0, 100)


@given(VALUES, PERCENT)
def test_a_percentile_is_a_value_that_occurred(values: list[float], percent: float) -> None:
    assert percentile(values, percent) in values


@given(VALUES, PERCENT)
def test_at_least_that_part_is_not_above_it_and_no_smaller_value_will_do(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    needed = len(values) * percent / 100 - 1e-6
    assert sum(v <= found for v in values) >= needed
    assert sum(v < found for v in values) < max(1, needed + 2e-6)


@given(VALUES, PERCENT, PERCENT)
def test_percentiles_rise_with_the_percentage(values: list[float], a: float, b: float) -> None:
    assert percentile(values, min(a, b)) <= percentile(values, max(a, b))


@given(VALUES, PERCENT, st.randoms())
def test_order_does_not_matter(values: list[float], percent: float, rng: random.Random) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert percentile(shuffled, percent) == percentile(values, percent)


def test_known_percentiles() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]


@pytest.mark.parametrize("percent", [-1, 101])
def test_no_values_and_no_percentages_are_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_turn_without_sound_is_infinitely_late_and_not_left_out() -> None:
    turns = [turn(first_audio_ms=700.0), turn(first_audio_ms=None, status="timeout")]
    summary = summarize(values_of(turns, "first_audio_ms"))
    assert summary is not None and summary.p50 == 700 and math.isinf(summary.p95)
    assert share(turns, "error_share") == 0.5


def test_a_turn_that_the_caller_cut_short_is_excused() -> None:
    cut = turn(first_audio_ms=None, audible_ms=None, status="cancelled", interrupted_by="cancel")
    assert values_of([cut], "first_audio_ms") == []
    assert not cut.is_failed


@pytest.mark.parametrize(
    ("status", "reason", "is_failed"),
    [
        ("completed", None, False),
        ("incomplete", "max_output_tokens", False),
        ("incomplete", "content_filter", True),
        ("cancelled", "turn_detected", True),
        ("failed", "server_error", True),
        ("timeout", None, True),
    ],
)
def test_what_counts_as_failed(status: str, reason: str | None, is_failed: bool) -> None:
    assert turn(status=status, reason=reason).is_failed is is_failed


def test_gaps_are_between_packets() -> None:
    made = turn(packets=[Packet(700, 1), Packet(780, 1), Packet(1000, 1)])
    assert values_of([made], "gap_ms") == [80, 220]


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
)
def test_the_rank_test_has_no_preference(a: list[float], b: list[float]) -> None:
    assert rank_sum_z(a, b) == pytest.approx(-rank_sum_z(b, a), abs=1e-9)
    assert rank_sum_z(a, a) == pytest.approx(0, abs=1e-9)


def test_chance_is_no_difference_and_a_shift_is_one() -> None:
    rng = random.Random(0)
    before = [turn(first_audio_ms=rng.gauss(700, 50)) for _ in range(40)]
    same = [turn(first_audio_ms=rng.gauss(700, 50)) for _ in range(40)]
    slower = [turn(first_audio_ms=rng.gauss(800, 50)) for _ in range(40)]
    words = []
    for turns in (same, slower):
        found = changes(run(before, [level()]), run(turns, [level()]))
        words.append(next(c.word for c in found if c.figure == "first_audio_ms"))
    assert words == ["no difference", "worse"]


def test_few_turns_prove_nothing() -> None:
    found = changes(run([turn()], [level()]), run([turn(first_audio_ms=9000.0)], [level()]))
    assert {c.word for c in found} == {"too few"}


def test_ratios_are_of_the_same_run_against_the_first_target() -> None:
    turns = [turn(first_audio_ms=500.0), turn(target="peer", first_audio_ms=1500.0)]
    made = run(turns, [level(), level(target="peer")], targets={"ours": "ws://a", "peer": "ws://b"})
    row = next(r for r in ratios(made) if r.figure == "first_audio_ms")
    assert (row.first, row.others[0].value, row.others[0].ratio) == (500, 1500, 3)
