"""Sound and frames to utterances, with the speech detector ahead, behind or absent."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.camera import KEPT_SAMPLES, Camera, frame_stride
from server.input import InputBuffer, Utterance
from server.settings import VideoSettings
from streaming.media import ClipKind, ClipStart, FramePair, MediaChunk, VideoFrame
from streaming.pcm import Encoding, SoundFormat
from streaming.vad import VadSettings

PLAIN = SoundFormat(Encoding.PCM16, 16_000)


def pcm(start: int, end: int) -> bytes:
    """Samples that say where they stand."""
    return b"".join((i % 30_000).to_bytes(2, "little") for i in range(start, end))


def buffer(vad: VadSettings | None = None, rules: VideoSettings | None = None) -> InputBuffer:
    made = InputBuffer(PLAIN, rules or VideoSettings())
    made.set_detection(vad)
    return made


def sound_of(utterance: Utterance) -> bytes:
    return b"".join(p.pcm for p in utterance.pieces if isinstance(p, MediaChunk))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_an_utterance_is_exactly_what_was_said_between_its_times(data: st.DataObject) -> None:
    """Whatever the sizes of appends and however far the detector lags behind."""
    made = buffer(VadSettings())
    end = 90_000
    cuts = sorted(data.draw(st.lists(st.integers(0, end), max_size=12)))
    judged = 0
    start, stop = 4_000, data.draw(st.integers(12_000, 80_000))
    opened, utterance = None, None
    for a, b in zip([0, *cuts], [*cuts, end], strict=True):
        made.append(pcm(a, b))
        until = data.draw(st.integers(judged, made.clock_sample))
        if until >= start + 2_000 and opened is None:
            opened = made.begin(start, "i", 1)
        if opened is not None and utterance is None and until >= stop:
            utterance = made.end(stop)
        judged = until
        made.judge(judged)
    if opened is None:
        return
    utterance = utterance or made.end(stop)
    assert (utterance.start_sample, utterance.end_sample) == (start, stop)
    assert sound_of(utterance) == pcm(start, stop)


def test_outside_speech_only_a_pre_roll_is_kept() -> None:
    made = buffer(VadSettings(prefix_padding_ms=800))
    for second in range(5):
        made.append(pcm(16_000 * second, 16_000 * (second + 1)))
        made.judge(16_000 * (second + 1))
    assert len(made._kept) == 2 * 12_800
    utterance = made.begin(0, "i", 1)
    assert utterance.start_sample == 80_000 - 12_800


def test_speech_may_not_reach_back_into_what_a_commit_took() -> None:
    made = buffer(VadSettings())
    made.append(pcm(0, 16_000))
    made.begin(0, "i", 1)
    made.end_here()
    assert made.to_hear[-1] == 16_000
    assert not made.can_begin(15_000)
    assert made.can_begin(16_000)


def test_pending_is_what_a_commit_would_take() -> None:
    made = buffer(VadSettings())
    made.append(pcm(0, 16_000))
    assert made.pending_ms == 1_000
    made.judge(8_000)
    assert made.pending_ms == 500
    made.begin(8_000, "i", 1)
    assert made.pending_ms == 500
    made.clear()
    assert made.pending_ms == 0


def test_the_detector_hears_only_while_it_is_wanted() -> None:
    made = buffer(VadSettings())
    made.append(pcm(0, 1_000))
    made.set_detection(None)
    made.append(pcm(1_000, 5_000))
    made.set_detection(VadSettings(threshold=0.6))
    made.append(pcm(5_000, 6_000))
    assert made.to_hear == [
        VadSettings(), 0, pcm(0, 1_000), VadSettings(threshold=0.6), 1_000, pcm(5_000, 6_000),
    ]  # fmt: skip
    assert made.our_sample(1_000) == 5_000


def test_speech_goes_on_when_detection_is_switched_off_in_it() -> None:
    made = buffer(VadSettings())
    made.append(pcm(0, 16_000))
    made.begin(0, "i", 1)
    made.set_detection(None)
    made.append(pcm(16_000, 20_000))
    assert sound_of(made.end_here()) == pcm(0, 20_000)


def test_what_the_detector_never_judges_is_bounded() -> None:
    made = buffer(VadSettings())
    made.append(pcm(0, 50_000))
    assert made.drop_unjudged(40_000)
    assert len(made._kept) == 2 * 20_000
    assert not made.drop_unjudged(40_000)


def test_an_utterance_without_sound_has_no_pieces() -> None:
    made = buffer()
    made.begin_kept("i", 1)
    utterance = made.end_here()
    assert (utterance.pieces, utterance.has_sound) == ([], False)


def test_half_a_sample_waits_for_its_other_half() -> None:
    made = buffer()
    assert made.read(b"\1") == b""
    assert made.read(b"\2\3\4\5") == b"\1\2\3\4"
    made.clear()
    assert made.read(b"\6\7") == b"\6\7"


def frame(at: int, size: int = 3) -> VideoFrame:
    return VideoFrame(at, bytes(size))


def test_frames_are_shown_with_the_sound_of_their_time() -> None:
    made = buffer()
    for second in range(4):
        made.camera.add(frame(16_000 * second + 100), 2)
        made.append(pcm(0, 16_000))
        made.begin_kept("i", 1)
        made.take_all()
    utterance = made.end_here()
    pairs = [p for p in utterance.pieces if isinstance(p, FramePair)]
    assert utterance.pieces[0] == ClipStart(ClipKind.VIDEO_WITH_SOUND, 0)
    assert [pair.frames[0].capture_sample for pair in pairs] == [100, 16_100, 32_100, 48_100]
    assert len(made.camera) == 0


@pytest.mark.parametrize("num_frames", [1, 3, 40])
def test_a_camera_switched_on_late_is_seen_in_stills(num_frames: int) -> None:
    """The clip has begun without pictures by then."""
    made = buffer()
    made.append(pcm(0, 40_000))
    made.begin_kept("i", 1)
    made.take_all()
    for i in range(num_frames):
        made.camera.add(VideoFrame(made.clock_sample, b"%d" % i), 2)
        made.append(pcm(0, 8_000))
        made.take_all()
    utterance = made.end_here()
    assert utterance.pieces[0] == ClipStart(ClipKind.SOUND, 0)
    assert not [p for p in utterance.pieces if isinstance(p, FramePair)]
    shown = [int(frame.jpeg) for frame in utterance.stills]
    assert len(shown) == min(num_frames, 4) == utterance.num_frames
    assert shown == sorted(set(shown))
    assert utterance.num_frames + utterance.num_thinned == num_frames
    made.append(pcm(0, 8_000))
    made.begin_kept("j", 2)
    made.take_all()
    assert made.end_here().stills == [], "what one utterance saw belongs to nobody else"


def test_a_frame_from_shortly_before_the_speech_is_seen_and_older_ones_are_not() -> None:
    made = buffer(VadSettings(), VideoSettings(lookback_ms=500))
    made.append(pcm(0, 64_000))
    made.judge(32_000)
    made.camera.add(frame(16_000), 2)
    made.camera.add(frame(26_000), 2)
    made.begin(32_000, "i", 1)
    utterance = made.end(48_000)
    [pair] = [p for p in utterance.pieces if isinstance(p, FramePair)]
    assert [f.capture_sample for f in pair.frames] == [26_000]


@given(st.integers(1, 64), st.integers(1, 400))
def test_a_long_utterance_thins_its_frames_and_never_has_too_many(most: int, seconds: int) -> None:
    shown = [0]
    kept = 0
    for index in range(seconds):
        stride = frame_stride(kept, most)
        if stride and index % stride == 0:
            kept += 2 if most - kept >= 2 else 0
            shown.append(index)
    assert kept <= most
    gaps = [b - a for a, b in zip(shown, shown[1:], strict=False)]
    assert gaps[1:] == sorted(gaps[1:])


def test_frames_alone_make_an_utterance() -> None:
    made = buffer(rules=VideoSettings(max_frames=4))
    for i in range(8):
        made.camera.add(frame(8_000 * i), 2)
    utterance = made.end_frames("i", 1)
    assert utterance.pieces[0] == ClipStart(ClipKind.VIDEO, 0)
    assert not utterance.has_sound
    assert utterance.num_frames <= 4
    assert utterance.num_thinned >= 4
    assert len(made.camera) == 0


@pytest.mark.parametrize(("fps", "kept"), [(2, 4), (1, 2), (8, 16)])
def test_the_camera_keeps_so_many_frames_a_second(fps: float, kept: int) -> None:
    camera = Camera()
    for i in range(16):
        camera.add(frame(2_000 * i), fps)
    assert (len(camera), camera.losses.rate) == (kept, 16 - kept)


def test_the_camera_forgets_what_is_old() -> None:
    camera = Camera()
    for i in range(70):
        camera.add(frame(8_000 * i), 2)
    assert camera.frames[0].capture_sample >= camera.frames[-1].capture_sample - KEPT_SAMPLES
    assert camera.losses.memory == 70 - len(camera)


def test_frames_come_out_in_order_once() -> None:
    camera = Camera()
    for at in (16_000, 0, 8_000):
        camera.add(frame(at), 2)
    assert [f.capture_sample for f in camera.take_until(9_000)] == [0, 8_000]
    camera.add(frame(4_000, 9), 8)
    assert camera.losses.late == 1
    assert [f.capture_sample for f in camera.take_until(99_000)] == [16_000]


def test_a_clock_that_begins_anew_moves_only_what_it_had_timed() -> None:
    camera = Camera()
    camera.add(frame(50_000), 2)
    camera.add(frame(1_000), 2, is_timed=True)
    camera.shift(48_000)
    assert [f.capture_sample for f in camera.frames] == [1_000, 2_000]
