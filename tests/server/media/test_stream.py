"""Streams come out the same however they were cut, as soon as they can, on their own clock, within their budget."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.media.jobs import Decoded, FaultCode, MediaType, StreamData
from server.media.stream import (
    MAX_BAD_PACKETS,
    MAX_CHUNK_CPU_S,
    MAX_CHUNK_FRAMES,
    MAX_CHUNK_SOUND_S,
    Budget,
    MediaError,
    decode_stream,
)
from tests.server.media.files import (
    HEIGHT,
    RECORDINGS,
    SECONDS,
    TONE_HZ,
    WIDTH,
    FreeBudget,
    Pieces,
    Recording,
    cut,
    decode,
    record,
    repeated_frame,
    repeated_silence,
    thirds,
)

NAMES = sorted(RECORDINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(positions=st.lists(st.integers(0, 2**31), max_size=12))
def test_cutting_a_stream_anywhere_changes_neither_frames_nor_sound(
    name: str, positions: list[int]
) -> None:
    recording = RECORDINGS[name]
    whole = record(recording)
    pieces = cut(whole, *(position % len(whole) for position in positions))
    assert decode(pieces, recording.type) == decode([whole], recording.type)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_stream_may_come_byte_by_byte(name: str) -> None:
    recording = RECORDINGS[name]
    whole = record(recording)
    pieces = [bytes([byte]) for byte in whole]
    assert decode(pieces, recording.type) == decode([whole], recording.type)


@pytest.mark.parametrize("name", NAMES)
def test_each_third_yields_its_frames_and_sound_before_the_next_is_asked_for(name: str) -> None:
    recording = RECORDINGS[name]
    source = Pieces(thirds(record(recording, 6)))
    seen: list[tuple[int, Decoded]] = []
    first = StreamData("k", recording.type, b"", is_last=False, is_new=True, fps=60)
    decode_stream(
        first, source, FreeBudget(), lambda decoded: seen.append((source.num_taken, decoded))
    )
    for third in (1, 2, 3):
        answers = [decoded for piece, decoded in seen if piece == third]
        num_frames = sum(len(decoded.frames) for decoded in answers)
        sound_s = sum(len(decoded.pcm) for decoded in answers) / 32_000
        # Bytes are not spread evenly over time, and a fragment of H.264 here is a second long.
        assert 12 <= num_frames <= 28, third
        assert 1.0 <= sound_s <= 3.0, third


@pytest.mark.parametrize("name", NAMES)
def test_sound_is_all_there_and_keeps_its_pitch(name: str) -> None:
    recording = RECORDINGS[name]
    pcm = np.frombuffer(decode([record(recording)], recording.type).pcm, np.int16)
    # AAC begins and ends with up to 2 x 1024 samples of its own.
    assert len(pcm) == pytest.approx(SECONDS * 16_000, abs=2 * 1024)
    spectrum = np.abs(np.fft.rfft(pcm[8_000:24_000]))
    assert spectrum.argmax() == TONE_HZ  # one second: bins of 1 Hz
    assert np.abs(pcm[8_000:24_000]).max() == pytest.approx(8_000, rel=0.2)  # lossy codecs


@pytest.mark.parametrize("name", NAMES)
def test_frames_show_what_was_recorded_when_it_was(name: str) -> None:
    recording = RECORDINGS[name]
    result = decode([record(recording)], recording.type, fps=60)
    assert len(result.frames) == SECONDS * 10
    # AAC begins with a block of its own, which shifts all but the first picture by 1024 samples.
    shift = 1024 * 1000 // 44_100 if recording.sound == "aac" else 0
    for index, (offset_ms, jpeg) in enumerate(result.frames):
        expected_ms = 100 * index + (shift if index else 0)
        assert offset_ms == pytest.approx(expected_ms, abs=2)  # WebM counts milliseconds
        grey = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), np.float64)
        assert grey.shape == (HEIGHT, WIDTH)
        middle = (grey.mean(axis=0) * np.arange(WIDTH)).sum() / grey.mean(axis=0).sum()
        assert middle == pytest.approx(8 * index % (WIDTH - 8) + 4, abs=12)  # lossy codecs ring


@pytest.mark.parametrize("fps", [0.5, 1, 2, 3, 7.5, 10])
def test_frames_are_thinned_evenly(fps: float) -> None:
    recording = RECORDINGS["vp8"]
    offsets = decode([record(recording, 6)], recording.type, fps=fps).offsets_ms
    assert len(offsets) == pytest.approx(6 * fps, abs=1)
    gaps = np.diff(offsets)
    # A frame every 100 ms: nothing can be more even.
    assert all(abs(gap - 1000 / fps) < 101 for gap in gaps)


def test_frames_are_scaled_down_with_their_shape() -> None:
    recording = RECORDINGS["vp8"]
    result = decode([record(recording)], recording.type, max_pixels=5_000)
    sizes = {Image.open(io.BytesIO(jpeg)).size for _, jpeg in result.frames}
    assert sizes == {(81, 61)}


def test_sound_can_be_left_out() -> None:
    recording = RECORDINGS["vp8"]
    result = decode([record(recording)], recording.type, with_sound=False)
    assert not result.pcm
    assert result.frames


@pytest.mark.parametrize(
    "recording",
    [
        Recording(MediaType.WEBM, "webm", None, "libopus"),
        Recording(MediaType.MP4, "mp4", None, "aac", RECORDINGS["h264"].options, (), 22_050),
        Recording(MediaType.WEBM, "matroska", None, "pcm_s16le"),
        Recording(MediaType.WEBM, "matroska", None, "pcm_f32le"),
    ],
)
def test_sound_alone_is_a_stream(recording: Recording) -> None:
    result = decode([record(recording)], recording.type)
    assert not result.frames
    assert len(result.pcm) // 2 == pytest.approx(SECONDS * 16_000, abs=2 * 1024)


def test_joining_in_the_middle_waits_for_a_key_frame() -> None:
    recording = RECORDINGS["h264"]
    whole = record(recording)
    fragments = [at for at in range(len(whole)) if whole[at : at + 4] == b"moof"]
    header, rest = whole[: fragments[0] - 4], whole[fragments[1] - 4 :]
    result = decode([header + rest], recording.type)
    assert result.offsets_ms[0] <= 50
    assert len(result.frames) == pytest.approx(2 * (SECONDS - 1), abs=1)


# ---- gaps: sound that leaves packets out


def _without_sound_between(begin_s: float, end_s: float) -> bytes:
    recording = RECORDINGS["vp8"]
    encoded = io.BytesIO()
    with (
        av.open(io.BytesIO(record(recording, 6))) as source,
        av.open(encoded, "w", format="webm") as target,
    ):
        tracks = [target.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.dts is None:
                continue
            seconds = float(packet.pts * packet.time_base)
            if packet.stream.type == "audio" and begin_s <= seconds < end_s:
                continue
            packet.stream = tracks[packet.stream_index]
            target.mux(packet)
    return encoded.getvalue()


def test_a_gap_in_the_sound_is_filled_with_silence() -> None:
    result = decode([_without_sound_between(2, 3)], MediaType.WEBM)
    pcm = np.frombuffer(result.pcm, np.int16)
    assert len(pcm) == pytest.approx(6 * 16_000, abs=320)
    assert np.abs(pcm[2 * 16_000 + 800 : 3 * 16_000 - 800]).max() < 10
    assert np.abs(pcm[3 * 16_000 + 800 :]).max() > 4_000


def test_a_long_gap_is_a_jump_of_the_clock() -> None:
    answers: list[Decoded] = []
    first = StreamData("k", MediaType.WEBM, b"", is_last=False, is_new=True)
    decode_stream(first, Pieces([_without_sound_between(1, 4.5)]), FreeBudget(), answers.append)
    sound = [answer for answer in answers if answer.pcm]
    assert sum(len(answer.pcm) for answer in sound) // 2 == pytest.approx(2.5 * 16_000, abs=640)
    ends = [answer.pcm_offset_ms + len(answer.pcm) // 32 for answer in sound]
    jumps = [b.pcm_offset_ms - end for end, b in zip(ends, sound[1:], strict=False)]
    assert [jump for jump in jumps if abs(jump) > 40] == [pytest.approx(3500, abs=40)]


# ---- what is refused


def _fault(pieces: list[bytes], type_: MediaType, budget: Budget | None = None) -> MediaError:
    first = StreamData("k", type_, b"", is_last=False, is_new=True)
    with pytest.raises(MediaError) as caught:
        decode_stream(first, Pieces(pieces), budget or Budget(), lambda decoded: None)
    return caught.value


@pytest.mark.parametrize("type_", list(MediaType))
@pytest.mark.parametrize("rubbish", [b"", b"\x00", b"rubbish " * 1000, bytes(100_000)])
def test_rubbish_is_undecodable(type_: MediaType, rubbish: bytes) -> None:
    assert _fault([rubbish], type_).fault.code is FaultCode.MEDIA_DECODE_ERROR


def test_the_declared_type_decides_the_demuxer() -> None:
    webm, mp4 = record(RECORDINGS["vp8"]), record(RECORDINGS["h264"])
    assert _fault([webm], MediaType.MP4).fault.code is FaultCode.MEDIA_DECODE_ERROR
    assert _fault([mp4], MediaType.WEBM).fault.code is FaultCode.MEDIA_DECODE_ERROR


@pytest.mark.parametrize(
    "recording",
    [
        Recording(MediaType.WEBM, "matroska", "mpeg4", None),
        Recording(MediaType.WEBM, "matroska", "ffv1", None),
        Recording(MediaType.WEBM, "matroska", None, "flac"),
    ],
)
def test_a_codec_that_no_browser_records_is_refused_by_name(recording: Recording) -> None:
    error = _fault([record(recording)], recording.type)
    assert error.fault.code is FaultCode.UNSUPPORTED_MEDIA_TYPE
    assert (recording.video or recording.sound or "") in error.fault.message


@pytest.mark.slow
def test_frames_of_one_chunk_are_counted() -> None:
    error = _fault([repeated_frame(MAX_CHUNK_FRAMES + 1)], MediaType.WEBM)
    assert error.fault.code is FaultCode.MEDIA_DECODE_ERROR
    assert str(MAX_CHUNK_FRAMES) in error.fault.message
    assert decode([repeated_frame(MAX_CHUNK_FRAMES)], MediaType.WEBM).frames


def test_sound_of_one_chunk_is_counted() -> None:
    num_packets = round(MAX_CHUNK_SOUND_S * 50)
    error = _fault([repeated_silence(num_packets + 2)], MediaType.WEBM)
    assert error.fault.code is FaultCode.MEDIA_DECODE_ERROR
    assert "sound" in error.fault.message


def test_processor_time_of_one_chunk_is_counted() -> None:
    clock = itertools.count(step=MAX_CHUNK_CPU_S / 20)
    budget = Budget(cpu_s=lambda: next(clock))
    error = _fault([record(RECORDINGS["vp8"])], MediaType.WEBM, budget)
    assert error.fault.code is FaultCode.MEDIA_DECODE_ERROR
    assert "took more than" in error.fault.message


def test_a_budget_begins_anew_with_each_chunk() -> None:
    budget = Budget(cpu_s=lambda: 0.0)
    for _ in range(3):
        for _ in range(MAX_CHUNK_FRAMES):
            budget.count_frame()
        budget.count_sound(MAX_CHUNK_SOUND_S)
        budget.begin()
    budget.count_sound(MAX_CHUNK_SOUND_S)
    with pytest.raises(MediaError):
        budget.count_sound(0.02)


def _with_broken_packets(num_broken: int) -> bytes:
    """Six seconds. VP9 says in two bits of a packet that it is one; take them from some."""
    whole = record(RECORDINGS["vp9"], 6)
    with av.open(io.BytesIO(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    broken, at = bytearray(whole), 0
    for index, packet in enumerate(packets):
        at = whole.index(packet, at)
        if 10 <= index < 10 + num_broken:
            broken[at] = 0
    return bytes(broken)


def test_a_few_broken_packets_are_skipped() -> None:
    intact = decode([_with_broken_packets(0)], MediaType.WEBM, fps=60)
    broken = decode([_with_broken_packets(MAX_BAD_PACKETS)], MediaType.WEBM, fps=60)
    assert len(intact.frames) == 60
    assert broken.frames[:10] == intact.frames[:10]
    assert len(broken.frames) == 60 - MAX_BAD_PACKETS


def test_many_broken_packets_end_the_stream() -> None:
    error = _fault([_with_broken_packets(MAX_BAD_PACKETS + 1)], MediaType.WEBM)
    assert error.fault.code is FaultCode.MEDIA_DECODE_ERROR
