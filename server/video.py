"""Video: single frames and media streams on the input clock.

    picture ──────── small JPEG ────────────────────────────▶ camera
        └── else ──▶ still ──▶ decoder ──▶ JPEG ────────────▶ camera
    chunk of a stream ───────▶ decoder ──▶ JPEG, sound ─────▶ camera, input buffer

The clock is the sound appended so far; as long as there is none, the time since the session began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.events import ErrorEvent, VideoCleared, VideoDropped
from server.media.jobs import CloseStream, FaultCode, MediaType, Stills, StreamData
from server.media.sniff import image_size, split_sequence
from streaming.errors import ClientError
from streaming.media import VideoFrame, input_samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from server.events import InputImageAppend, InputVideoAppend
    from server.media.jobs import Decoded, MediaJob
    from server.responses import Wiring
    from server.settings import VideoSettings
    from server.turns import Turns

    SoundSource = Literal["append", "stream"]

JPEG_TYPE = "image/jpeg"
MAX_STREAMS = 2
MAX_STILLS = 64
"""Pictures that wait for a decoder."""
REPORT_MS = 1_000
HEADERS = {MediaType.WEBM: (0, b"\x1a\x45\xdf\xa3"), MediaType.MP4: (4, b"ftyp")}
"""Where a stream of the type has what at its beginning."""


@dataclass(slots=True)
class _Stream:
    """One media stream of the client."""

    key: str
    format: MediaType
    num_chunks: int = 0
    base_sample: int | None = None
    """Where its own time 0 lies on the input clock."""
    is_dead: bool = False
    """Undecodable: its chunks are dropped until a new one begins."""
    is_ended: bool = False
    """Its last chunk has come."""
    is_refused: bool = False
    """Its sound is not taken, and the client knows."""


@dataclass(frozen=True, slots=True)
class _Still:
    capture_sample: int
    is_timed: bool


class Video:
    """Owned by the session."""

    def __init__(
        self,
        wiring: Wiring,
        turns: Turns,
        new_job_id: Callable[[], str],
        add_job: Callable[[MediaJob], None],
        began_ms: int,
    ) -> None:
        self._wiring = wiring
        self._turns = turns
        self._new_job_id = new_job_id
        self._add_job = add_job
        self._began_ms = began_ms
        self._streams: dict[str, _Stream] = {}  # by the client's id
        self._stills: dict[str, _Still] = {}
        self._source: SoundSource | None = None
        self._next_report_ms = 0
        self._num_late = 0

    @property
    def _rules(self) -> VideoSettings:
        return self._turns.input.rules

    # ---- from the client

    def begin_sound(self, now_ms: int) -> None:
        """The client appends sound of its own.

        Raises:
            ClientError: the sound comes with its video already.
        """
        if self._source == "stream":
            raise ClientError(
                "audio_source_conflict",
                "This session takes its sound from input_video_buffer.append already.",
            )
        self._source = "append"
        self._start_clock(now_ms)

    def add_picture(self, event: InputImageAppend, now_ms: int) -> None:
        """Take one camera frame.

        Raises:
            ClientError: it is no picture, or too large a one.
        """
        capture = self._capture(event.timestamp_ms, now_ms)
        self._add(event.image, capture, event.timestamp_ms is not None, "image")

    def add_chunk(self, event: InputVideoAppend, now_ms: int) -> None:
        """Take the next bytes of a stream.

        Raises:
            ClientError: they cannot be used.
        """
        self._turns.reports_frames = True
        if event.format == JPEG_TYPE:
            self._add_sequence(event, now_ms)
            return
        stream, is_new = self._stream_of(event, MediaType(event.format))
        if stream.is_dead:
            return
        if is_new and event.start_ms is not None:
            stream.base_sample = input_samples(event.start_ms)
        stream.num_chunks += 1
        stream.is_ended = event.last or event.standalone
        rules = self._rules
        self._add_job(
            StreamData(
                stream.key,
                stream.format,
                event.video,
                is_last=stream.is_ended,
                is_new=is_new,
                fps=rules.fps,
                max_pixels=rules.max_pixels,
                with_sound=rules.audio_track == "append",
            )
        )

    def clear(self) -> None:
        self._turns.reports_frames = True
        self._turns.input.camera.clear()
        self._stills.clear()
        self._wiring.outbox.put(VideoCleared())

    # ---- from the decoders

    def receive(self, decoded: Decoded, now_ms: int) -> None:
        """Take what a decoder made of a picture or chunk. Answers to other jobs are ignored."""
        still = self._stills.pop(decoded.key, None)
        if still is not None:
            for frame in decoded.frames[:1]:
                self._show(VideoFrame(still.capture_sample, frame.jpeg), still.is_timed)
            self._take_fault(decoded, None)
            return
        found = [(i, s) for i, s in self._streams.items() if s.key == decoded.key]
        for stream_id, stream in found:
            self._take_media(stream, decoded, now_ms)
            self._take_fault(decoded, stream)
            if decoded.fault is not None and decoded.fault.code is FaultCode.DROPPED:
                del self._streams[stream_id]

    def report(self, now_ms: int) -> None:
        """Tell the client which frames were dropped, once a second at most."""
        losses = self._turns.input.camera.losses
        counts = {
            "rate": losses.rate,
            "memory": losses.memory,
            "late": losses.late + self._num_late,
        }
        reason = max(counts, key=lambda name: counts[name])
        if not counts[reason] or now_ms < self._next_report_ms or not self._turns.reports_frames:
            return
        self._next_report_ms = now_ms + REPORT_MS
        setattr(losses, reason, 0)
        if reason == "late":
            self._num_late = 0
        self._wiring.outbox.put(VideoDropped(counts[reason], reason))  # type: ignore[arg-type]  # one of the three

    # ---- inside

    def _capture(self, timestamp_ms: int | None, now_ms: int) -> int:
        if timestamp_ms is not None:
            return input_samples(timestamp_ms)
        return self._clock_sample(now_ms)

    def _clock_sample(self, now_ms: int) -> int:
        appended = self._turns.input.clock_sample
        return appended or input_samples(now_ms - self._began_ms)

    def _start_clock(self, now_ms: int) -> None:
        """The first sound is about to come: from now on its samples are the clock."""
        if self._turns.input.clock_sample:
            return
        passed = input_samples(now_ms - self._began_ms)
        self._turns.input.camera.shift(passed)
        for key, still in self._stills.items():
            if not still.is_timed:
                self._stills[key] = _Still(still.capture_sample - passed, False)

    def _add(self, image: bytes, capture_sample: int, is_timed: bool, where: str) -> None:
        if image_size(image, where).can_go_as_it_is(self._rules.max_pixels):
            self._show(VideoFrame(capture_sample, image), is_timed)
            return
        if len(self._stills) >= MAX_STILLS:
            self._num_late += 1
            return
        job = Stills(self._new_job_id(), image, self._rules.max_pixels)
        self._stills[job.key] = _Still(capture_sample, is_timed)
        self._add_job(job)

    def _show(self, frame: VideoFrame, is_timed: bool) -> None:
        self._turns.input.camera.add(frame, self._rules.fps, is_timed=is_timed)

    def _add_sequence(self, event: InputVideoAppend, now_ms: int) -> None:
        if event.frames is None:
            capture = self._capture(event.start_ms, now_ms)
            self._add(event.video, capture, event.start_ms is not None, "video")
            return
        pictures = split_sequence(event.video, event.frames)
        if not pictures:
            return
        if event.start_ms is not None:
            start = input_samples(event.start_ms)
        else:
            start = self._clock_sample(now_ms) - input_samples(pictures[-1].offset_ms)
        for picture in pictures:
            capture = start + input_samples(picture.offset_ms)
            self._add(picture.jpeg, capture, event.start_ms is not None, "video")

    def _stream_of(self, event: InputVideoAppend, format_: MediaType) -> tuple[_Stream, bool]:
        """The stream that a chunk belongs to, and whether it begins with it."""
        stream = self._streams.get(event.stream_id)
        is_new = (
            stream is None
            or stream.format is not format_
            or event.standalone
            or stream.is_ended
            or _has_header(event.video, format_)
        )
        if stream is not None and not is_new:
            if event.seq not in (None, stream.num_chunks):
                self._forget(event.stream_id)
                raise ClientError(
                    "invalid_value",
                    f"Chunk {event.seq} of stream '{event.stream_id}' came where "
                    f"{stream.num_chunks} was expected; the stream is restarted.",
                    param="seq",
                )
            return stream, False
        if stream is not None:
            self._forget(event.stream_id)
        self._make_room()
        begun = _Stream(self._new_job_id(), format_, event.seq or 0)
        self._streams[event.stream_id] = begun
        return begun, True

    def _make_room(self) -> None:
        while len(self._streams) >= MAX_STREAMS:
            self._forget(next(iter(self._streams)))

    def _forget(self, stream_id: str) -> None:
        stream = self._streams.pop(stream_id)
        if not (stream.is_dead or stream.is_ended):
            self._add_job(CloseStream(stream.key))

    def _take_media(self, stream: _Stream, decoded: Decoded, now_ms: int) -> None:
        takes_sound = bool(decoded.pcm) and self._takes_sound(stream, now_ms)
        if takes_sound:
            clock = self._turns.input.clock_sample
            stream.base_sample = clock - input_samples(decoded.pcm_offset_ms)
        elif stream.base_sample is None and decoded.frames:
            last_ms = decoded.frames[-1].offset_ms
            stream.base_sample = self._clock_sample(now_ms) - input_samples(last_ms)
        for frame in decoded.frames:  # first, as sound that has left takes no frames any more
            capture = (stream.base_sample or 0) + input_samples(frame.offset_ms)
            self._show(VideoFrame(capture, frame.jpeg), True)
        if takes_sound:
            self._turns.append_pcm(decoded.pcm, now_ms)

    def _takes_sound(self, stream: _Stream, now_ms: int) -> bool:
        """The session's sound comes from streams; if it does not, the client is told once."""
        if self._source == "append" and not stream.is_refused:
            stream.is_refused = True
            self._fault("audio_source_conflict", "The session's sound is appended separately.")
        if self._source is None:
            self._start_clock(now_ms)
            self._source = "stream"
        return self._source == "stream"

    def _take_fault(self, decoded: Decoded, stream: _Stream | None) -> None:
        fault = decoded.fault
        if fault is None:
            return
        if stream is not None:
            stream.is_dead = True
        if fault.code is FaultCode.DROPPED:
            self._num_late += 1
        else:
            self._fault(fault.code, fault.message)

    def _fault(self, code: str, message: str) -> None:
        self._wiring.outbox.put(ErrorEvent(code, message))


def _has_header(video: bytes, format_: MediaType) -> bool:
    at, magic = HEADERS[format_]
    return video[at : at + len(magic)] == magic
