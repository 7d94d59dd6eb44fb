"""What a session asks of the decoders and what it gets back; the same values cross the pipe to a decoder process.

A *stream* is one byte stream of media, as a browser's recorder makes it: its pieces may be cut anywhere and are decoded
in order. Its time is its own: 0 is the first sample or picture in it, whatever its timestamps say.

    StreamData(is_new=True) ──▶ Decoded … Decoded(is_job_done=True)      any number for each piece,
    StreamData              ──▶ Decoded … Decoded(is_job_done=True)      the last of them marked
    StreamData(is_last=True)──▶ Decoded … Decoded(is_job_done=True)
    Stills                  ──▶ Decoded(is_job_done=True)                one picture or a fault

A fault ends the stream: nothing more comes of its key, pieces already submitted included, until a piece with `is_new`.
What was decoded before it stands. A file of its own is one piece that is both new and last; one of more than ten
seconds may be cut into several pieces, as each of them has a budget.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

MAX_CHUNK_MS = 10_000
"""Media time that one piece of a stream may hold."""
MAX_FRAMES_PER_SECOND = 60
MAX_STREAM_WIDTH, MAX_STREAM_HEIGHT = 1920, 1088
"""1080 lines are coded as 1088. Upright pictures may be as large."""


class MediaType(StrEnum):
    """Containers that can be a stream. Parameters behind a semicolon are the client's business and ours to ignore."""

    WEBM = "video/webm"
    MP4 = "video/mp4"


class FaultCode(StrEnum):
    """Codes of `docs/protocol.md`, section 12, but for `DROPPED`."""

    INVALID_IMAGE = "invalid_image"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    MEDIA_DECODE_ERROR = "media_decode_error"
    DROPPED = "dropped"
    """No decoder had time: the client is told by `input_video_buffer.dropped`, not by an error."""


class MediaFault(msgspec.Struct, frozen=True, array_like=True):
    code: FaultCode
    message: str
    """One sentence for the client; nothing internal."""


class Stills(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One picture to make a JPEG of at most `max_pixels` of. Its size in the header has been checked (`sniff`)."""

    job_id: str
    image: bytes
    max_pixels: int

    @property
    def key(self) -> str:
        return self.job_id


class StreamData(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The next bytes of a stream, cut anywhere.

    `fps`, `max_pixels` and `with_sound` count when the stream is new.
    """

    stream_key: str
    format: MediaType
    data: bytes
    is_last: bool
    """The stream ends with these bytes: decode what is held back."""
    is_new: bool
    """A stream begins with these bytes; one of the same key that is open is given up."""
    fps: float = 2.0
    """At most so many frames a second come back; the first of each span of 1/fps is taken."""
    max_pixels: int = 313_600
    """Larger frames are scaled down, their aspect kept."""
    with_sound: bool = True
    """False: the sound is not decoded."""

    @property
    def key(self) -> str:
        return self.stream_key


class CloseStream(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give a stream up: nothing more of it is delivered."""

    stream_key: str

    @property
    def key(self) -> str:
        return self.stream_key


MediaJob = Stills | StreamData | CloseStream


class DecodedFrame(msgspec.Struct, frozen=True, array_like=True):
    offset_ms: int
    """When it was captured, on the stream's clock; 0 for a still."""
    jpeg: bytes


class Decoded(msgspec.Struct, frozen=True, array_like=True):
    """Part of the answer to a job; those of a key arrive in order."""

    key: str
    """`job_id` or `stream_key`."""
    frames: tuple[DecodedFrame, ...] = ()
    """In order of time."""
    pcm: bytes = b""
    """The sound that follows the sound before it: int16 little-endian mono at 16 kHz. Gaps of up to two seconds are
    filled with silence; at a longer one, or a step back, `pcm_offset_ms` jumps."""
    pcm_offset_ms: int = 0
    """Where `pcm` begins, on the stream's clock; the first one shows how far the sound is behind the picture."""
    is_job_done: bool = False
    """Nothing more comes of this job."""
    fault: MediaFault | None = None
    """Why nothing more comes of this key. Always with `is_job_done`."""
