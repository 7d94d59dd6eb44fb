"""Media as browsers record it, made small and fast; and the same things gone wrong."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

from server.media.jobs import Decoded, MediaType, StreamData
from server.media.stream import Budget, decode_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAMES_PER_SECOND = 10
WIDTH, HEIGHT = 160, 120
SECONDS = 3
TONE_HZ = 440


@dataclass(frozen=True)
class Recording:
    """How a recorder writes."""

    type: MediaType
    container: str
    video: str | None
    sound: str | None
    options: tuple[tuple[str, str], ...] = ()
    video_options: tuple[tuple[str, str], ...] = ()
    rate: int = 48_000


_LIVE = (("live", "1"), ("cluster_time_limit", "1000"))
_FRAGMENTS = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
_FAST_VP = (("deadline", "realtime"), ("cpu-used", "8"), ("g", "100"))
_FAST_H264 = (("preset", "ultrafast"), ("tune", "zerolatency"), ("g", "10"))

RECORDINGS = {
    "vp8": Recording(MediaType.WEBM, "webm", "libvpx", "libopus", _LIVE, _FAST_VP),
    "vp9": Recording(MediaType.WEBM, "webm", "libvpx-vp9", "libopus", _LIVE, _FAST_VP),
    "h264": Recording(MediaType.MP4, "mp4", "libx264", "aac", _FRAGMENTS, _FAST_H264, 44_100),
    # What one browser calls video/webm;codecs=h264.
    "h264 in matroska": Recording(
        MediaType.WEBM, "matroska", "libx264", "libopus", _LIVE, _FAST_H264
    ),
}


@cache
def record(
    recording: Recording, seconds: float = SECONDS, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> bytes:
    """A moving bar and a steady tone."""
    encoded = io.BytesIO()
    with av.open(
        encoded, "w", format=recording.container, options=dict(recording.options)
    ) as container:
        video = sound = None
        if recording.video:
            video = container.add_stream(
                recording.video, rate=FRAMES_PER_SECOND, options=dict(recording.video_options)
            )
            video.width, video.height = size
            video.pix_fmt = "yuv420p"
            video.thread_count = 1
        if recording.sound:
            sound = container.add_stream(recording.sound, rate=recording.rate, layout="mono")
        for index in range(round(seconds * FRAMES_PER_SECOND)):
            if video:
                container.mux(video.encode(_frame(index, *size)))
            if sound:
                container.mux(sound.encode(_tone(index, recording.rate)))
        for stream in filter(None, (video, sound)):
            container.mux(stream.encode(None))
    return encoded.getvalue()


def _frame(index: int, width: int, height: int) -> av.VideoFrame:
    pixels = np.zeros((height, width, 3), np.uint8)
    left = 8 * index % (width - 8)
    pixels[:, left : left + 8] = 200
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
    return frame


def _tone(index: int, rate: int) -> av.AudioFrame:
    num_samples = rate // FRAMES_PER_SECOND
    at = index * num_samples + np.arange(num_samples)
    samples = (8000 * np.sin(2 * np.pi * TONE_HZ * at / rate)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, at[0].item(), Fraction(1, rate)
    return frame


@cache
def repeated_frame(num_frames: int) -> bytes:
    """A WebM of one key frame and the same "nothing changed" again and again: black by the hour in a few bytes."""
    return _repeat("libvpx", "libvpx", num_frames, 1000 // 30)


@cache
def repeated_silence(num_packets: int) -> bytes:
    """A WebM of 20 ms of silence, again and again."""
    return _repeat(None, "libopus", num_packets, 20)


def _repeat(video: str | None, codec: str, num_packets: int, packet_ms: int) -> bytes:
    source, encoded = io.BytesIO(), io.BytesIO()
    with av.open(source, "w", format="webm") as container:
        track = container.add_stream(codec, rate=30 if video else 48_000)
        if video:
            track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(30):
            frame = _frame(0, WIDTH, HEIGHT) if video else _silence(index)
            if video:
                frame.pts, frame.time_base = index, Fraction(1, 30)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    source.seek(0)
    with av.open(source) as container, av.open(encoded, "w", format="webm") as target:
        template = container.streams[0]
        track = target.add_stream_from_template(template)
        packets = [packet for packet in container.demux(template) if packet.size][:3]
        for index in range(num_packets):
            packet = packets[min(index, 2)]
            copy = av.Packet(bytes(packet))
            copy.pts = copy.dts = index * packet_ms
            copy.time_base, copy.stream = Fraction(1, 1000), track
            copy.is_keyframe = packet.is_keyframe and index == 0
            target.mux(copy)
    return encoded.getvalue()


def _silence(index: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48_000, index * 1600, Fraction(1, 48_000)
    return frame


def picture(
    format_: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object
) -> bytes:
    encoded = io.BytesIO()
    Image.new(mode, size, 90 if mode in ("L", "CMYK") else "#336699").save(
        encoded, format_, **options
    )
    return encoded.getvalue()


# ---- decoding in this process


class Pieces:
    """A source of given pieces; remembers how many have been asked for."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = list(pieces)
        self._unread = b""
        self.num_taken = 0

    def read(self, num_bytes: int) -> bytes:
        while not self._unread and self._pieces:
            self._unread = self._pieces.pop(0)
            self.num_taken += 1
        taken, self._unread = self._unread[:num_bytes], self._unread[num_bytes:]
        return taken


class FreeBudget(Budget):
    """Counts nothing: the pieces of the tests are as long as they like."""

    def check_time(self) -> None: ...
    def count_frame(self) -> None: ...
    def count_sound(self, duration_s: float) -> None: ...


@dataclass
class Result:
    """All of a stream."""

    frames: list[tuple[int, bytes]]
    pcm: bytes
    pcm_offset_ms: int

    @property
    def offsets_ms(self) -> list[int]:
        return [offset_ms for offset_ms, _ in self.frames]


def collect(answers: Sequence[Decoded]) -> Result:
    """Join the answers."""
    frames = [(frame.offset_ms, frame.jpeg) for answer in answers for frame in answer.frames]
    offsets = [answer.pcm_offset_ms for answer in answers if answer.pcm]
    return Result(frames, b"".join(answer.pcm for answer in answers), min(offsets, default=0))


def decode(pieces: Sequence[bytes], type_: MediaType, **wishes: object) -> Result:
    answers: list[Decoded] = []
    first = StreamData("k", type_, b"", is_last=False, is_new=True, **wishes)
    decode_stream(first, Pieces(pieces), FreeBudget(), answers.append)
    return collect(answers)


def cut(whole: bytes, *positions: int) -> list[bytes]:
    """Cut at the positions, in any order."""
    edges = [0, *sorted(positions), len(whole)]
    return [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def thirds(whole: bytes) -> list[bytes]:
    return cut(whole, len(whole) // 3, 2 * len(whole) // 3)


def with_size(image: bytes, width: int, height: int) -> bytes:
    """The same file, its header claiming another size."""
    changed = bytearray(image)
    if image[:2] == b"\xff\xd8":
        at = image.index(b"\xff\xc0")
        struct.pack_into(">HH", changed, at + 5, height, width)
    elif image[:4] == b"\x89PNG":
        struct.pack_into(">II", changed, 16, width, height)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    else:
        assert image[12:16] == b"VP8 "
        if max(width, height) <= 0x3FFF:
            struct.pack_into("<HH", changed, 26, width, height)
        else:
            raise ValueError("lossy WebP has 14 bits for a side")
    return bytes(changed)
