"""Positions assigned piece by piece equal the reference's over the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import DecoderConfig, OmniConfig
from model.interleave import Interleaver
from model.rope import RotaryTable, Timeline, rotate
from tests.model.reference import TINY

CONFIG = OmniConfig.from_json(TINY).thinker
MERGE = CONFIG.vision.spatial_merge_size
TEXT = 7


@dataclass(frozen=True)
class Text:
    length: int


@dataclass(frozen=True)
class Audio:
    num_rows: int


@dataclass(frozen=True)
class Image:
    height: int
    width: int


@dataclass(frozen=True)
class Video:
    num_pairs: int
    height: int
    width: int
    num_audio_rows: int | None
    """None for a silent video."""


sides = st.integers(1, 4)
segments = st.one_of(
    st.builds(Text, st.integers(1, 9)),
    st.builds(Audio, st.integers(1, 120)),
    st.builds(Image, sides, sides),
    st.builds(Video, st.integers(1, 7), sides, sides, st.none()),
)
av_segments = st.one_of(
    st.builds(Text, st.integers(1, 9)),
    st.builds(Image, sides, sides),
    st.builds(Video, st.integers(1, 7), sides, sides, st.integers(1, 160)),
)
seconds = st.sampled_from([0.5, 0.8, 1.0, 1.3, 2.0])


class Conversation:
    """Builds ids and positions incrementally and, beside them, what the reference needs."""

    def __init__(self, seconds_per_pair: float) -> None:
        self.timeline = Timeline.for_config(CONFIG, seconds_per_pair)
        self.ids: list[int] = []
        self.positions: list[torch.Tensor] = []
        self.image_grids: list[tuple[int, int, int]] = []
        self.video_grids: list[tuple[int, int, int]] = []
        self.audio_rows: list[int] = []

    def put(self, ids: list[int], positions: torch.Tensor) -> None:
        assert positions.shape == (3, len(ids))
        self.ids += ids
        self.positions.append(positions)

    def add(self, segment: Text | Audio | Image | Video) -> None:
        line = self.timeline
        match segment:
            case Text(length):
                self.put([TEXT] * length, line.text(length))
            case Audio(num_rows):
                self.put([CONFIG.audio_start_token_id], line.text(1))
                for start in range(0, num_rows, 50):  # clips arrive in 2-second blocks
                    n = min(50, num_rows - start)
                    self.put([CONFIG.audio_token_index] * n, line.text(n))
                self.put([CONFIG.audio_end_token_id], line.text(1))
                self.audio_rows.append(num_rows)
            case Image(height, width):
                self.put([CONFIG.vision_start_token_id], line.open_segment(with_audio=False))
                rows = line.pair(0, height, width)
                self.put([CONFIG.image_token_index] * (height * width), rows)
                self.put([CONFIG.vision_end_token_id], line.close_segment())
                self.image_grids.append((1, height * MERGE, width * MERGE))
            case Video():
                self.add_video(segment)

    def add_video(self, video: Video) -> None:
        line, with_audio = self.timeline, video.num_audio_rows is not None
        opening = [CONFIG.vision_start_token_id, CONFIG.audio_start_token_id]
        self.put(opening[: 1 + with_audio], line.open_segment(with_audio=with_audio))
        for item in arrange(line, video):
            if isinstance(item, Pair):
                n = video.height * video.width
                rows = line.pair(item.index, video.height, video.width)
                self.put([CONFIG.video_token_index] * n, rows)
            else:
                self.put([CONFIG.audio_token_index] * item, line.audio(item))
        closing = [CONFIG.audio_end_token_id, CONFIG.vision_end_token_id]
        self.put(closing[1 - with_audio :], line.close_segment())
        self.video_grids.append((video.num_pairs, video.height * MERGE, video.width * MERGE))
        if video.num_audio_rows is not None:
            self.audio_rows.append(video.num_audio_rows)

    def reference_positions(self, model, seconds_per_pair: float, use_audio_in_video: bool):  # type: ignore[no-untyped-def]
        ids = torch.tensor([self.ids])
        # The reference counts audio in mel frames; 4 frames make one row.
        frames = torch.tensor([4 * n for n in self.audio_rows]) if self.audio_rows else None
        return model.get_rope_index(
            ids,
            torch.tensor(self.image_grids) if self.image_grids else None,
            torch.tensor(self.video_grids) if self.video_grids else None,
            torch.ones_like(ids),
            use_audio_in_video,
            frames,
            torch.tensor([seconds_per_pair] * len(self.video_grids)),
        )


@dataclass(frozen=True)
class Pair:
    index: int


def arrange(line: Timeline, video: Video) -> list[Pair | int]:
    """Feed pairs first, then audio blocks; the interleaver puts them in order."""
    interleaver: Interleaver[Pair, int] = Interleaver(pairs_per_chunk=1000)
    out: list[Pair | int] = []
    for k in range(video.num_pairs):
        out += interleaver.add_pair(line.pair_time(k) // 50, Pair(k))
    for start in range(0, video.num_audio_rows or 0, 50):
        out += interleaver.add_audio(min(50, (video.num_audio_rows or 0) - start))
    return out + interleaver.close()


def check(model, parts, seconds_per_pair: float, use_audio_in_video: bool) -> None:  # type: ignore[no-untyped-def]
    conversation = Conversation(seconds_per_pair)
    for part in parts:
        conversation.add(part)
    conversation.add(Text(2))
    expected, delta = conversation.reference_positions(model, seconds_per_pair, use_audio_in_video)
    positions = torch.cat(conversation.positions, dim=1)
    assert torch.equal(positions, expected[:, 0].long())
    assert conversation.timeline.next_position == positions[0, -1] + 1
    num_ids = len(conversation.ids)
    assert conversation.timeline.max_position + 1 - num_ids == int(delta)


@settings(max_examples=150, deadline=None)
@given(st.lists(segments, max_size=6), seconds)
def test_positions_of_any_conversation_equal_the_reference(reference, parts, seconds_per_pair):  # type: ignore[no-untyped-def]
    check(reference.thinker.model, parts, seconds_per_pair, use_audio_in_video=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(av_segments, min_size=1, max_size=5), seconds)
def test_positions_of_videos_with_sound_equal_the_reference(reference, parts, seconds_per_pair):  # type: ignore[no-untyped-def]
    check(reference.thinker.model, parts, seconds_per_pair, use_audio_in_video=True)


def test_worked_example_of_a_video_with_sound() -> None:
    conversation = Conversation(1.0)
    for part in (Text(3), Video(5, 2, 3, 115), Text(2)):
        conversation.add(part)
    positions = torch.cat(conversation.positions, dim=1)
    assert positions.shape[1] == 154
    assert positions[0, :5].tolist() == [0, 1, 2, 3, 3]
    assert positions[:, 5:11].T.tolist() == [[4, 4 + i, 4 + j] for i in range(2) for j in range(3)]
    assert positions[0, -4:].tolist() == [119, 119, 120, 121]


def test_a_video_that_outlasts_its_sound_closes_below_its_own_maximum() -> None:
    """Reference quirk, and why the Talker's third position is not simply the next one."""
    conversation = Conversation(1.0)
    conversation.add(Video(2, 1, 1, 3))  # second pair at id 26, three audio rows at 1…3
    line = conversation.timeline
    assert (line.next_position, line.max_position) == (5, 26)
    assert line.talker_start() == (5, 6, 27)


def test_an_open_segment_rolls_back_to_its_snapshot() -> None:
    line = Timeline()
    line.text(4)
    before = line.snapshot()
    line.open_segment(with_audio=True)
    line.pair(0, 3, 3)
    line.audio(50)
    assert line.snapshot() != before
    line = before.snapshot()
    assert line == before
    assert line.open_segment(with_audio=True).tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("seconds_per_pair", [0.0, -1.0, 2.5])
def test_pairs_further_apart_than_a_chunk_are_refused(seconds_per_pair: float) -> None:
    with pytest.raises(ValueError, match="seconds_per_pair"):
        Timeline.for_config(CONFIG, seconds_per_pair)


@settings(max_examples=200, deadline=None)
@given(num_pairs=st.integers(0, 9), num_blocks=st.integers(0, 5), data=st.data())
def test_interleaving_does_not_depend_on_who_arrives_first(num_pairs, num_blocks, data) -> None:  # type: ignore[no-untyped-def]
    expected = []
    for chunk in range(max(-(-num_pairs // 2), num_blocks)):
        expected += [("p", k) for k in (2 * chunk, 2 * chunk + 1) if k < num_pairs]
        expected += [("a", chunk)] if chunk < num_blocks else []
    order = data.draw(st.permutations(["p"] * num_pairs + ["a"] * num_blocks))
    interleaver: Interleaver[tuple[str, int], tuple[str, int]] = Interleaver(pairs_per_chunk=2)
    out: list[tuple[str, int]] = []
    pairs = blocks = 0
    for kind in order:
        if kind == "p":
            out += interleaver.add_pair(pairs // 2, ("p", pairs))
            pairs += 1
        else:
            out += interleaver.add_audio(("a", blocks))
            blocks += 1
    assert out + interleaver.close() == expected


def test_a_pair_leaves_as_soon_as_the_sound_before_it_has_left() -> None:
    interleaver: Interleaver[str, str] = Interleaver(pairs_per_chunk=2)
    assert interleaver.add_pair(0, "p0") == ["p0"]
    assert interleaver.add_audio("a0") == []  # a second pair of chunk 0 may still come
    assert interleaver.end_pairs(before_chunk=1) == ["a0"]
    assert interleaver.add_pair(1, "p1") == ["p1"]
    with pytest.raises(ValueError, match="after chunk"):
        interleaver.add_pair(0, "late")


def test_rotation_depends_on_relative_positions_only() -> None:
    decoder = DecoderConfig(8, 32, 8, 1, 2, 1, 16, mrope_section=(2, 3, 3))
    table = RotaryTable.build(decoder, torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, generator=g)
    at = torch.tensor([[3], [5], [9]])

    def score(shift: int) -> torch.Tensor:
        a = rotate(q, *table.cos_sin(at + 4 + shift, torch.float32))
        b = rotate(k, *table.cos_sin(at + shift, torch.float32))
        return (a * b).sum()

    torch.testing.assert_close(score(0), score(100), atol=1e-5, rtol=0)  # angles round in float32
    moved = rotate(k, *table.cos_sin(at + torch.tensor([[0], [0], [1]]), torch.float32))
    changed = (moved - rotate(k, *table.cos_sin(at, torch.float32))).abs()[0, 0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [5, 6, 7, 13, 14, 15]  # the width's frequencies
