"""A byte stream of WebM or fragmented MP4, cut anywhere, to JPEG frames and 16 kHz sound as the bytes arrive.

The demuxer asks for bytes and blocks until there are some, so whatever it has yielded before it asks is all that the
bytes so far hold. Runs in a decoder process only.

    source.read ──▶ demuxer ──▶ picture packets ──▶ decoder ──▶ thinned, scaled ──▶ JPEG ──▶ emit
                       └──────▶ sound packets ────▶ decoder ──▶ mono, gaps filled ──▶ 16 kHz ──▶ emit

A stranger wrote every byte. Formats and codecs are on a list, sizes are checked on every frame, and what one piece of
the stream may make of itself is counted while it is decoded (`Budget`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.stream import VideoStream
from PIL import Image

from server.media.jobs import (
    MAX_CHUNK_MS,
    MAX_FRAMES_PER_SECOND,
    MAX_STREAM_HEIGHT,
    MAX_STREAM_WIDTH,
    Decoded,
    DecodedFrame,
    FaultCode,
    MediaFault,
    MediaType,
    StreamData,
)
from server.media.still import scaled_size, write_jpeg
from streaming.errors import ClientError, ParleyError
from streaming.media import INPUT_SAMPLE_RATE
from streaming.pcm import FULL_SCALE
from streaming.resample import Resampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.container import InputContainer
    from av.stream import Stream

    from streaming.resample import Samples

Emit = Callable[[Decoded], None]

DEMUXERS = {MediaType.WEBM: "matroska,webm", MediaType.MP4: "mov,mp4,m4a,3gp,3g2,mj2"}
VIDEO_CODECS = frozenset({"vp8", "vp9", "av1", "libdav1d", "h264"})
SOUND_CODECS = frozenset({"opus", "libopus", "vorbis", "aac", "pcm_f32le", "pcm_s16le"})
"""What browsers record. Names of decoders; two of them for some codecs."""

PROBE_OPTIONS = {
    # Open within the first bytes. The "no buffer" flag would lose the packets read while probing.
    "probesize": "4096",
    "analyzeduration": "0",
    "codec_whitelist": ",".join(sorted(VIDEO_CODECS | SOUND_CODECS)),
    "protocol_whitelist": "none",  # no such protocol: a container may not refer to anything
}

BUFFER_BYTES = 128 * 1024
"""The most that the demuxer asks for at once."""
MAX_PIXELS = MAX_STREAM_WIDTH * MAX_STREAM_HEIGHT
MAX_CHANNELS = 8
SLACK = 1.2
"""A recorder's ten seconds are a little more, and a piece may complete what the one before it began."""
MAX_CHUNK_FRAMES = int(SLACK * MAX_CHUNK_MS * MAX_FRAMES_PER_SECOND / 1000)
MAX_CHUNK_SOUND_S = SLACK * MAX_CHUNK_MS / 1000
MAX_CHUNK_CPU_S = 2.0
MAX_BAD_PACKETS = 30
"""In a row. Fewer are skipped: a bit may be wrong, and a stream may be joined between key frames."""

GAP_S = 0.04
"""Time stamps that are this far off are a gap; less is rounding (WebM counts milliseconds)."""
MAX_FILLED_GAP_S = 2.0
"""A longer gap is a jump of the clock, which `pcm_offset_ms` shows."""


class MediaError(ParleyError):
    """The stream ends here; the fault may be shown to the client."""

    def __init__(self, code: FaultCode, message: str) -> None:
        self.fault = MediaFault(code, message)
        super().__init__(f"{code}: {message}")


class Source(Protocol):
    """The stream's bytes. What opens it must not find a `seek`."""

    def read(self, num_bytes: int) -> bytes:
        """Return what there is, at most `num_bytes`; block while there is nothing; empty at the end."""


class _WholeHeader:
    """An MP4 whose header comes in one read, if it fits into one.

    The demuxer steps back while it reads a track's description, and it can do so only within what it read at once: a
    stream cut there would not open.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._header: bytes | None = None

    def read(self, num_bytes: int) -> bytes:
        if self._header is None:
            self._header = self._read_header(num_bytes)
        if not self._header:
            return self._source.read(num_bytes)
        taken, self._header = self._header[:num_bytes], self._header[num_bytes:]
        return taken

    def _read_header(self, num_bytes: int) -> bytes:
        header = b""
        while len(header) < min(_header_end(header), num_bytes):
            received = self._source.read(num_bytes - len(header))
            if not received:
                break
            header += received
        return header


def _header_end(begin: bytes) -> int:
    """Bytes up to the end of the `moov` box, as far as the boxes before it tell (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while len(begin) >= at + 8:
        size, name = int.from_bytes(begin[at : at + 4]), begin[at + 4 : at + 8]
        if size < 8:  # "until the end", or a length of eight bytes: no header of a recorder's
            return at
        at += size
        if name == b"moov":
            return at
    return at + 8


@dataclass(slots=True)
class Budget:
    """What decoding one piece of a stream may cost. Whoever feeds the source begins it anew with each piece."""

    cpu_s: Callable[[], float] = time.process_time
    num_frames: int = 0
    sound_s: float = 0.0
    deadline_cpu_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.num_frames, self.sound_s = 0, 0.0
        self.deadline_cpu_s = self.cpu_s() + MAX_CHUNK_CPU_S

    def count_frame(self) -> None:
        """Raises: MediaError: more frames than a chunk may have."""
        self.num_frames += 1
        if self.num_frames > MAX_CHUNK_FRAMES:
            raise _undecodable(f"more than {MAX_CHUNK_FRAMES} frames in one chunk")

    def count_sound(self, duration_s: float) -> None:
        """Raises: MediaError: more sound than a chunk may have."""
        self.sound_s += duration_s
        if self.sound_s > MAX_CHUNK_SOUND_S:
            raise _undecodable(f"more than {MAX_CHUNK_SOUND_S:g} s of sound in one chunk")

    def check_time(self) -> None:
        """Raises: MediaError: decoding takes too long."""
        if self.cpu_s() > self.deadline_cpu_s:
            raise _undecodable(f"decoding one chunk took more than {MAX_CHUNK_CPU_S:g} s")


def decode_stream(first: StreamData, source: Source, budget: Budget, emit: Emit) -> None:
    """Decode until the source ends. `first` says what the stream is and what is wanted of it.

    Raises:
        MediaError: the stream cannot or may not be decoded further; what was emitted before stands.
    """
    try:
        with av.open(
            _WholeHeader(source) if first.format is MediaType.MP4 else source,
            "r",
            buffer_size=BUFFER_BYTES,
            format=DEMUXERS[first.format].partition(",")[0],
            options={**PROBE_OPTIONS, "format_whitelist": DEMUXERS[first.format]},
            io_open=_refuse_reference,
        ) as container:
            _decode_packets(container, first, budget, emit)
    except (av.FFmpegError, ValueError) as error:
        raise _undecodable(f"no readable {first.format}: {type(error).__name__}") from error
    except MemoryError as error:
        raise _undecodable("decoding takes too much memory") from error


def _decode_packets(
    container: InputContainer, first: StreamData, budget: Budget, emit: Emit
) -> None:
    clock, streams = _Clock(), _wanted_streams(container, first)
    picture, sound = _Picture(first, clock, emit), _Sound(first, clock, emit)
    num_bad: Counter[int] = Counter()  # by stream, since a packet of it was decoded
    for packet in container.demux(streams):
        budget.check_time()
        _require_size(packet.stream)
        try:
            for frame in packet.decode():
                num_bad[packet.stream_index] = 0
                if isinstance(frame, av.VideoFrame):
                    budget.count_frame()
                    picture.take(frame)
                elif isinstance(frame, av.AudioFrame):
                    budget.count_sound(frame.samples / frame.sample_rate)
                    sound.take(frame, budget)
        except av.error.InvalidDataError:
            num_bad[packet.stream_index] += 1
            if num_bad[packet.stream_index] > MAX_BAD_PACKETS:
                raise
    sound.flush()


def _wanted_streams(container: InputContainer, first: StreamData) -> list[Stream]:
    """The first of each kind; their order in the file varies."""
    kinds: list[tuple[Sequence[Stream], frozenset[str]]] = [(container.streams.video, VIDEO_CODECS)]
    if first.with_sound:
        kinds.append((container.streams.audio, SOUND_CODECS))
    wanted = [(streams[0], codecs) for streams, codecs in kinds if streams]
    if not wanted:
        raise _undecodable("there is neither picture nor sound in it")
    for stream, codecs in wanted:
        codec = stream.codec_context.codec.name if stream.codec_context else "unknown"
        if codec not in codecs:
            raise MediaError(
                FaultCode.UNSUPPORTED_MEDIA_TYPE,
                f"codec {codec} in {first.format}; use one of {', '.join(sorted(codecs))}",
            )
        # Several threads would hold frames back, one for each.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = ThreadType.NONE
        _require_size(stream)
    return [stream for stream, _ in wanted]


def _require_size(stream: Stream) -> None:
    if isinstance(stream, VideoStream):
        _require_pixels(stream.codec_context.width, stream.codec_context.height)


def _require_pixels(width: int, height: int) -> None:
    """A stream may change its size; each frame is checked as well."""
    if width * height > MAX_PIXELS or max(width, height) > max(MAX_STREAM_WIDTH, MAX_STREAM_HEIGHT):
        raise _undecodable(
            f"{width}x{height} pixels; the limit is {MAX_STREAM_WIDTH}x{MAX_STREAM_HEIGHT}"
        )


def _refuse_reference(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a stream may not refer to anything outside itself")


def _undecodable(message: str) -> MediaError:
    return MediaError(FaultCode.MEDIA_DECODE_ERROR, message)


@dataclass(slots=True)
class _Clock:
    """The stream's clock: 0 is the first thing that came out of it, heard or seen."""

    zero_s: float | None = None

    def offset_s(self, time_s: float) -> float:
        if self.zero_s is None:
            self.zero_s = time_s
        return max(0.0, time_s - self.zero_s)


class _Picture:
    """Frames at any rate and size to JPEG at the wanted ones."""

    def __init__(self, first: StreamData, clock: _Clock, emit: Emit) -> None:
        self._wanted = first
        self._clock = clock
        self._emit = emit
        self._last_span = -1

    def take(self, frame: av.VideoFrame) -> None:
        _require_pixels(frame.width, frame.height)
        if frame.time is None:
            return
        offset_s = self._clock.offset_s(frame.time)
        span = int(offset_s * self._wanted.fps)
        if span <= self._last_span:
            return
        self._last_span = span
        jpeg = encode_frame(frame, self._wanted.max_pixels)
        decoded = DecodedFrame(round(1000 * offset_s), jpeg)
        self._emit(Decoded(self._wanted.key, frames=(decoded,)))


def encode_frame(frame: av.VideoFrame, max_pixels: int) -> bytes:
    """Return it upright as JPEG of at most `max_pixels`."""
    width, height = scaled_size(frame.width, frame.height, max_pixels)
    rotation = frame.rotation
    picture = Image.fromarray(frame.to_ndarray(format="rgb24", width=width, height=height))
    # Counter-clockwise in both libraries. Cameras are held at right angles.
    return write_jpeg(picture.rotate(rotation, expand=True) if rotation % 90 == 0 else picture)


class _Sound:
    """Sound in any layout to one 16 kHz channel without gaps."""

    def __init__(self, first: StreamData, clock: _Clock, emit: Emit) -> None:
        self._key = first.key
        self._clock = clock
        self._emit = emit
        self._rate = 0
        self._resampler: Resampler | None = None
        self._begin_s = 0.0
        """Where the sound since the last jump begins, by the stream's own time stamps."""
        self._num_in = 0
        self._num_out = 0

    def take(self, frame: av.AudioFrame, budget: Budget) -> None:
        samples = _mono(frame)
        expected_s = self._begin_s + self._num_in / self._rate if self._rate else None
        begin_s = frame.time if frame.time is not None else expected_s
        if begin_s is None:
            return
        if expected_s is None or abs(begin_s - expected_s) > MAX_FILLED_GAP_S:
            self._jump(begin_s, frame.sample_rate)
        elif frame.sample_rate != self._rate:
            raise _undecodable("the sample rate changes within the stream")
        elif begin_s - expected_s > GAP_S:
            budget.count_sound(begin_s - expected_s)
            self._push(np.zeros(round((begin_s - expected_s) * self._rate), np.int16))
        self._push(samples)

    def flush(self) -> None:
        if self._resampler is not None:
            self._send(self._resampler.flush())

    def _jump(self, begin_s: float, rate: int) -> None:
        self.flush()
        try:
            self._resampler = Resampler(rate, INPUT_SAMPLE_RATE)
        except ClientError as error:
            raise MediaError(FaultCode.UNSUPPORTED_MEDIA_TYPE, error.message) from error
        self._rate, self._begin_s = rate, begin_s
        self._num_in = self._num_out = 0

    def _push(self, samples: Samples) -> None:
        assert self._resampler is not None
        self._num_in += len(samples)
        self._send(self._resampler.push(samples))

    def _send(self, samples: Samples) -> None:
        if not len(samples):
            return
        offset_s = self._clock.offset_s(self._begin_s) + self._num_out / INPUT_SAMPLE_RATE
        self._num_out += len(samples)
        self._emit(Decoded(self._key, pcm=samples.tobytes(), pcm_offset_ms=round(1000 * offset_s)))


def _mono(frame: av.AudioFrame) -> Samples:
    """The mean of all channels, as int16."""
    num_channels = frame.layout.nb_channels
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise _undecodable(f"{num_channels} channels; the limit is {MAX_CHANNELS}")
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, num_channels).T
    mean = values.mean(axis=0, dtype=np.float64)  # [num_samples]
    if values.dtype.kind == "f":
        mean = np.nan_to_num(mean) * FULL_SCALE
    elif values.dtype != np.int16:
        raise _undecodable(f"samples of type {frame.format.name}")
    samples: Samples = np.clip(np.rint(mean), -32768, 32767).astype(np.int16)
    return samples
