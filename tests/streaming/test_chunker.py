"""Chunks and pairs: the same for every slicing, aligned, and every rule about frames by one example at least."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.chunker import (
    AHEAD_SAMPLES,
    HOLD_SAMPLES,
    KEPT_SAMPLES,
    Chunker,
    FrameCounts,
    FrameStore,
)
from streaming.media import (
    CHUNK_SAMPLES,
    ClipKind,
    ClipPart,
    ClipStart,
    FramePair,
    MediaChunk,
    VideoFrame,
    chunk_end,
)

SECOND = 16_000


def sound(num_samples: int, start: int = 0) -> bytes:
    """Samples that tell where they stand, so that a lost or doubled one shows."""
    return b"".join((n % 30_000).to_bytes(2, "little") for n in range(start, start + num_samples))


LONG = sound(5 * SECOND)


def frame(capture_sample: int) -> VideoFrame:
    return VideoFrame(capture_sample, b"jpeg %d" % capture_sample)


def chunks(parts: list[ClipPart]) -> list[MediaChunk]:
    return [part for part in parts if isinstance(part, MediaChunk)]


def shown(parts: list[ClipPart]) -> dict[int, list[int]]:
    """Capture times of each pair's frames."""
    return {
        part.index: [f.capture_sample for f in part.frames]
        for part in parts
        if isinstance(part, FramePair)
    }


def clip(frames: list[int], num_samples: int, start: int = 0) -> tuple[list[ClipPart], Chunker]:
    """A clip whose frames each come at the moment of their capture."""
    chunker = Chunker()
    parts: list[ClipPart] = []
    for capture in [c for c in frames if c < start]:
        chunker.add_frame(frame(capture), capture)
    chunker.open(start)
    now = start
    for capture in [c for c in frames if c >= start]:
        parts += chunker.push(bytes(2 * (capture - now)))
        now = capture
        chunker.add_frame(frame(capture), now)
    parts += chunker.push(bytes(2 * (start + num_samples - now)))
    return parts + chunker.close(), chunker


events = st.lists(
    st.one_of(
        st.integers(0, 40_000),
        st.tuples(st.integers(-9_000, 3_000), st.integers(0, 99)),
    ),
    max_size=12,
)


@given(st.integers(0, 10**6), events, st.lists(st.integers(0, 500_000), max_size=8))
def test_any_slicing_makes_the_same_parts(
    start: int, script: list[int | tuple[int, int]], cuts: list[int]
) -> None:
    """Only where the frames come between the samples counts."""

    def run(cuts: list[int]) -> list[ClipPart]:
        chunker, parts, now = Chunker(), [], 0
        chunker.open(start)
        for event in script:
            if isinstance(event, tuple):
                chunker.add_frame(frame(start + now + event[0]), start + now)
                continue
            edges = [now, *sorted(c for c in cuts if now < c < now + event), now + event]
            for a, b in zip(edges, edges[1:], strict=False):
                parts += chunker.push(bytes(2 * (b - a)))
            now += event
        return parts + chunker.close()

    assert run(sorted(cuts)) == run([])


@pytest.mark.parametrize("size", [1, 7, 320, 32_000, 32_039, 32_040, 32_041, 80_000])
def test_chunks_join_up_to_the_input(size: int) -> None:
    chunker, parts = Chunker(), []
    chunker.open(777)
    pcm = LONG[: 2 * 70_000]
    for at in range(0, len(pcm), 2 * size):
        parts += chunker.push(pcm[at : at + 2 * size])
    parts += chunker.close()
    assert parts[0] == ClipStart(ClipKind.SOUND, 777)
    assert parts[1:] == [
        MediaChunk(0, 777, pcm[: 2 * 32_040], is_last=False),
        MediaChunk(1, 777 + 32_040, pcm[2 * 32_040 : 2 * 64_040], is_last=False),
        MediaChunk(2, 777 + 64_040, pcm[2 * 64_040 :], is_last=True),
    ]


def test_a_chunk_leaves_with_the_sample_that_completes_it() -> None:
    chunker = Chunker()
    chunker.open(0)
    assert chunker.push(bytes(2 * (chunk_end(0) - 1))) == []
    assert chunks(chunker.push(bytes(2)))[0].num_samples == chunk_end(0)
    assert chunks(chunker.close()) == [MediaChunk(1, chunk_end(0), b"", is_last=True)]


def test_a_clip_without_a_sample_still_closes() -> None:
    chunker = Chunker()
    chunker.open(5)
    assert chunker.close() == [ClipStart(ClipKind.SOUND, 5), MediaChunk(0, 5, b"", is_last=True)]
    assert not chunker.is_open


def test_clips_follow_each_other_on_one_clock() -> None:
    chunker = Chunker()
    chunker.open(0)
    chunker.push(bytes(2000))
    chunker.close()
    chunker.open(1000)
    parts = chunker.push(bytes(2 * CHUNK_SAMPLES)) + chunker.close()
    assert [(c.index, c.start_sample) for c in chunks(parts)] == [(0, 1000)]


def test_a_discarded_clip_leaves_no_trace() -> None:
    chunker = Chunker()
    chunker.discard()
    chunker.open(0)
    chunker.push(bytes(2 * 50_000))
    chunker.discard()
    chunker.open(50_000)
    assert chunks(chunker.close()) == [MediaChunk(0, 50_000, b"", is_last=True)]


# ---- frames


def test_frames_on_the_grid_make_pairs_before_their_chunk() -> None:
    parts, chunker = clip([0, 8_000, 16_000, 24_000, 32_000, 40_000], 45_000)
    kinds = [type(part).__name__ for part in parts]
    assert kinds == ["ClipStart", "FramePair", "FramePair", "MediaChunk", "FramePair", "MediaChunk"]
    assert parts[0] == ClipStart(ClipKind.VIDEO_WITH_SOUND, 0)
    assert shown(parts) == {0: [0, 8_000], 1: [16_000, 24_000], 2: [32_000, 40_000]}
    assert chunker.counts == FrameCounts(received=6)


def test_a_pair_leaves_at_the_end_of_its_second() -> None:
    chunker = Chunker()
    chunker.open(0)
    chunker.add_frame(frame(100), 100)
    assert chunker.push(bytes(2 * (SECOND - 1))) == []
    assert shown(chunker.push(bytes(2))) == {0: [100]}


def test_the_grid_starts_with_the_clip() -> None:
    parts, _ = clip([5_000, 9_000, 13_500, 17_000, 20_900], 16_000, start=5_000)
    assert shown(parts) == {0: [5_000, 13_500]}


@pytest.mark.parametrize(
    ("frames", "slots"),
    [
        ([4_000, 7_900, 8_300, 11_999], [7_900]),  # the nearest; slot 0 has none before it
        ([1_000, 7_000, 9_000], [1_000, 7_000]),  # equally near: the earlier
        ([3_999, 4_000], [3_999, 4_000]),  # the border belongs to the later slot
        ([11_999], [11_999]),  # one frame stands for both
        ([12_000], []),  # the next pair's
        ([0], [0]),  # held
    ],
)
def test_a_slot_shows_the_nearest_frame(frames: list[int], slots: list[int]) -> None:
    parts, _ = clip(frames, 16_000)
    assert shown(parts).get(0, []) == slots


def test_a_slow_camera_is_held_for_two_seconds() -> None:
    parts, _ = clip([0], 5 * SECOND)
    assert shown(parts) == {0: [0], 1: [0], 2: [0]}  # slot 4 is exactly HOLD_SAMPLES later
    assert HOLD_SAMPLES == 2 * SECOND


def test_after_a_gap_pairs_keep_their_place_in_time() -> None:
    parts, _ = clip([0, 8_000, 5 * SECOND], 6 * SECOND)
    assert shown(parts) == {0: [0, 8_000], 1: [8_000], 2: [8_000], 5: [5 * SECOND]}


def test_a_clip_begins_with_what_the_camera_saw_last() -> None:
    parts, _ = clip([70_000, 85_000], 10_000, start=100_000)
    assert shown(parts) == {0: [85_000]}
    parts, _ = clip([100_000 - HOLD_SAMPLES - 1], 8_000, start=100_000)
    assert shown(parts) == {}


def test_a_clip_may_begin_in_the_past_with_its_frames() -> None:
    """Pre-roll: speech is found after it began."""
    chunker = Chunker()
    for capture in (90_000, 98_000, 106_000):
        chunker.add_frame(frame(capture), capture)
    chunker.open(98_000)
    assert shown(chunker.push(bytes(2 * SECOND))) == {0: [98_000, 106_000]}


def test_a_late_frame_misses_its_pair_and_is_held_for_the_next() -> None:
    chunker = Chunker()
    chunker.open(0)
    chunker.add_frame(frame(0), 0)
    chunker.push(bytes(2 * SECOND))
    chunker.add_frame(frame(11_999), SECOND)
    assert chunker.counts.late == 1
    chunker.add_frame(frame(12_000), SECOND)
    assert chunker.counts.late == 1
    assert shown(chunker.push(bytes(2 * SECOND))) == {1: [12_000]}
    chunker.add_frame(frame(27_000), 2 * SECOND)
    assert chunker.counts.late == 2
    assert shown(chunker.push(bytes(2 * SECOND))) == {2: [27_000]}


def test_a_frame_far_ahead_of_the_sound_is_dropped() -> None:
    chunker = Chunker()
    chunker.open(0)
    chunker.add_frame(frame(AHEAD_SAMPLES + 1), 0)
    assert (chunker.counts.early, shown(chunker.push(bytes(2 * 64_000)))) == (1, {})


def test_a_fast_camera_is_thinned_evenly() -> None:
    parts, chunker = clip(list(range(0, 4 * SECOND, 500)), 4 * SECOND)
    assert shown(parts) == {n: [n * SECOND, n * SECOND + 8_000] for n in range(4)}
    assert chunker.counts.crowded == 96  # of 128: eight a second are kept


@given(st.permutations([0, 500, 1_000, 1_999]))
def test_thinning_does_not_depend_on_the_order_of_arrival(captures: list[int]) -> None:
    store = FrameStore(FrameCounts())
    for capture in captures:
        store.add(frame(capture))
    assert store.shown_at(1_000) == frame(0)


def test_the_store_is_bounded_in_bytes_and_time() -> None:
    counts = FrameCounts()
    store = FrameStore(counts, max_bytes=25)
    for capture in (0, 4_000, 8_000):
        store.add(VideoFrame(capture, bytes(10)))
    assert counts.crowded == 1
    assert store.shown_at(0) is None and store.shown_at(4_000) is not None
    store.add(VideoFrame(12_000, bytes(99)))  # alone over the limit: the newest stays
    assert store.shown_at(8_000) is None and store.shown_at(12_000) is not None
    store.forget_before(12_001)
    assert store.shown_at(12_000) is None


def test_old_frames_are_forgotten_between_clips() -> None:
    chunker = Chunker()
    chunker.add_frame(frame(0), 0)
    chunker.add_frame(frame(KEPT_SAMPLES + 1), KEPT_SAMPLES + 1)
    chunker.open(0)
    assert shown(chunker.push(bytes(2 * SECOND))) == {}


def test_a_camera_that_comes_after_the_first_chunk_is_not_seen_in_this_clip() -> None:
    chunker = Chunker()
    chunker.open(0)
    parts = chunker.push(bytes(2 * chunk_end(0)))
    assert parts[0] == ClipStart(ClipKind.SOUND, 0)
    chunker.add_frame(frame(33_000), 33_000)
    assert chunker.counts.unseen == 1
    assert shown(chunker.push(bytes(2 * 64_000)) + chunker.close()) == {}
    chunker.open(64_000)
    assert shown(chunker.push(bytes(2 * SECOND))) == {0: [33_000]}  # but in the next, as held


def test_an_end_inside_a_pair_shows_the_slots_that_began() -> None:
    assert shown(clip([0, 7_999], 8_000)[0]) == {0: [0]}
    assert shown(clip([0, 8_000], 8_001)[0]) == {0: [0, 8_000]}
    assert shown(clip([0, 8_000, 15_000], 16_000)[0]) == {0: [0, 8_000]}
    assert shown(clip([0, 8_000, 15_000], 16_001)[0]) == {0: [0, 8_000], 1: [15_000]}


def test_video_without_sound_runs_on_its_own_clock() -> None:
    chunker, parts = Chunker(), []
    chunker.open(0, has_sound=False)
    for now in range(0, 80_000, 8_000):
        chunker.add_frame(frame(now), now)
        parts += chunker.advance(8_000)
    assert parts[0] == ClipStart(ClipKind.VIDEO, 0)
    assert shown(parts) == {n: [n * SECOND, n * SECOND + 8_000] for n in range(5)}
    [last] = chunks(parts + chunker.close())
    assert (last.index, last.pcm, last.is_last) == (2, b"", True)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c: c.push(b""),
        lambda c: c.close(),
        lambda c: (c.open(0), c.open(0)),
        lambda c: (c.open(0), c.advance(1)),
        lambda c: (c.open(0), c.push(b"x")),
        lambda c: (c.open(0, has_sound=False), c.push(b"")),
    ],
)
def test_our_own_misuse_is_loud(misuse) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        misuse(Chunker())
