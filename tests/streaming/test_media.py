"""Sample arithmetic is exact, and the grids nest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streaming import media
from streaming.media import FramePair, MediaChunk


@given(st.integers(0, 10**9))
def test_milliseconds_survive_the_trip_through_samples(duration_ms: int) -> None:
    assert media.input_ms(media.input_samples(duration_ms)) == duration_ms
    assert media.output_ms(media.output_samples(duration_ms)) == duration_ms


@given(st.integers(0, 10**9))
def test_milliseconds_are_rounded_down(num_samples: int) -> None:
    assert 0 <= num_samples - media.input_samples(media.input_ms(num_samples)) < 16
    assert 0 <= num_samples - media.output_samples(media.output_ms(num_samples)) < 24


@given(st.integers(0, 10**6))
def test_a_chunk_leaves_behind_its_pairs_and_before_the_next_ones(index: int) -> None:
    last_pair = (index + 1) * media.PAIRS_PER_CHUNK - 1
    assert media.pair_end(last_pair) < media.chunk_end(index) < media.pair_end(last_pair + 1)
    assert FramePair(last_pair, ()).chunk_index == index
    assert FramePair(last_pair + 1, ()).chunk_index == index + 1


def test_a_chunk_is_fifty_rows_and_the_mel_frames_reach() -> None:
    assert media.CHUNK_SAMPLES == 50 * media.INPUT_SAMPLES_PER_ROW
    # A mel frame starts 160 before the block's end and hears 200 ahead.
    assert media.LOOK_AHEAD_SAMPLES == 200 - 160


def test_a_chunk_knows_where_it_ends() -> None:
    chunk = MediaChunk(3, 1000, bytes(20), is_last=False)
    assert (chunk.num_samples, chunk.end_sample) == (10, 1010)
