"""How large a picture claims to be: read from the header of a JPEG, PNG or WebP by our own few lines.

A library decodes a whole file before it can be asked, so nothing may open a stranger's picture before these lines have
seen it. They look at headers only and never allocate by what they read there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from server.media.jobs import MAX_CHUNK_MS, MAX_FRAMES_PER_SECOND, DecodedFrame
from streaming.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_IMAGE_BYTES = 8 * 1024 * 1024
MAX_IMAGE_SIDE = 4096
MAX_SEQUENCE_FRAMES = MAX_CHUNK_MS * MAX_FRAMES_PER_SECOND // 1000


class ImageFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What a picture's header says."""

    format: ImageFormat
    width: int
    height: int
    is_simple: bool = False
    """A JPEG that takes one pass to decode, so that its size alone bounds the work. A progressive one may ask for
    thousands of passes over the whole picture."""

    def can_go_as_it_is(self, max_pixels: int) -> bool:
        """Whether the worker may have the file as received; if not, it goes through a decoder process."""
        return self.is_simple and self.width * self.height <= max_pixels


def image_size(image: bytes, param: str = "image") -> ImageSize:
    """Read format and size.

    Raises:
        ClientError: `image_too_large` beyond 8 MiB or 4096 pixels a side; `invalid_image` if it is no picture of these
            formats or its header is broken.
    """
    if len(image) > MAX_IMAGE_BYTES:
        raise ClientError(
            "image_too_large",
            "the file is too large; send a smaller picture",
            param=param,
            bytes=len(image),
            limit=MAX_IMAGE_BYTES,
        )
    size = _read_size(image)
    if size is None:
        raise ClientError(
            "invalid_image",
            "not a complete JPEG, PNG or WebP picture",
            param=param,
            bytes=len(image),
        )
    if max(size.width, size.height) > MAX_IMAGE_SIDE:
        raise ClientError(
            "image_too_large",
            "the picture is too large; scale it down",
            param=param,
            width=size.width,
            height=size.height,
            limit=MAX_IMAGE_SIDE,
        )
    return size


def _read_size(image: bytes) -> ImageSize | None:
    """The header's claim; None if there is none, or it claims an empty picture."""
    try:
        if image.startswith(b"\xff\xd8\xff"):
            size = _jpeg_size(image)
        elif image.startswith(b"\x89PNG\r\n\x1a\n"):
            size = _png_size(image)
        elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
            size = _webp_size(image)
        else:
            return None
    except (struct.error, IndexError):  # the file ends within its header
        return None
    return size if size and size.width and size.height else None


# ---- JPEG (ITU-T T.81, annex B): segments of marker, length and body up to the first scan
#
# Strict on purpose: what two readers may read differently (bytes between segments, markers out of place, a second frame
# header) is refused, or the decoder might see another size than we did.

_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
"""Frame headers. Lossless, hierarchical and arithmetic coding are refused: no camera makes them."""
_FRAMES = frozenset({_BASELINE, _EXTENDED, _PROGRESSIVE})
_HUFFMAN, _QUANTISATION, _RESTART_INTERVAL, _COMMENT = 0xC4, 0xDB, 0xDD, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_SEGMENTS = _FRAMES | {_HUFFMAN, _QUANTISATION, _RESTART_INTERVAL, _COMMENT, *_APPLICATION}
_START_OF_SCAN = 0xDA
_MAX_SEGMENTS = 1000
"""Bounds the work; a colour profile may take 255 of them."""
_MAX_SIMPLE_SCANS = 4
"""One for each component, if they are not interleaved."""


def _jpeg_size(image: bytes) -> ImageSize | None:
    frame: ImageSize | None = None
    at = 2
    for _ in range(_MAX_SEGMENTS):
        fill, marker = image[at], image[at + 1]
        if fill != 0xFF:
            return None
        if marker == 0xFF:  # a marker may be preceded by more of them
            at += 1
            continue
        if marker == _START_OF_SCAN:
            # Within coded data only restarts occur, so every FF DA from here begins a scan.
            is_one_pass = image.count(b"\xff\xda", at) <= _MAX_SIMPLE_SCANS
            return frame and replace(frame, is_simple=frame.is_simple and is_one_pass)
        (length,) = struct.unpack_from(">H", image, at + 2)
        if marker not in _SEGMENTS or length < 2 or (frame and marker in _FRAMES):
            return None
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", image, at + 5)
            frame = ImageSize(ImageFormat.JPEG, width, height, marker != _PROGRESSIVE)
        at += 2 + length
    return None


# ---- PNG (W3C, section 11.2.1): IHDR is the first chunk


def _png_size(image: bytes) -> ImageSize | None:
    length, name, width, height = struct.unpack_from(">I4sII", image, 8)
    if (length, name) != (13, b"IHDR"):
        return None
    return ImageSize(ImageFormat.PNG, width, height)


# ---- WebP (RFC 9649): a lossy, a lossless or an extended picture


def _webp_size(image: bytes) -> ImageSize | None:
    kind, body = image[12:16], image[20:30]
    if kind == b"VP8 ":
        (tag,) = struct.unpack_from("<H", body)
        start_code, width, height = struct.unpack_from("<3sHH", body, 3)
        if tag & 1 or start_code != b"\x9d\x01\x2a":  # not a key frame
            return None
        return ImageSize(ImageFormat.WEBP, width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", body)
        if signature != 0x2F:
            return None
        return ImageSize(ImageFormat.WEBP, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", body, 4)
        width = (high_width << 16 | low_width) + 1
        return ImageSize(ImageFormat.WEBP, width, (high_height << 16 | low_height) + 1)
    return None


# ---- a sequence of JPEG pictures in one payload


class SequenceEntry(Protocol):
    """What the client says about one picture of a sequence: `frames` of `input_video_buffer.append`."""

    @property
    def size(self) -> int: ...
    @property
    def offset_ms(self) -> int: ...


def split_sequence(video: bytes, entries: Sequence[SequenceEntry]) -> tuple[DecodedFrame, ...]:
    """Cut a payload of JPEG pictures apart, in order of time; each has a header that `image_size` accepts.

    Raises:
        ClientError: `invalid_value` if the sizes do not add up to the payload, an offset is outside a chunk, or there
            are too many; `invalid_image` or `image_too_large` for a picture.
    """
    if len(entries) > MAX_SEQUENCE_FRAMES:
        raise ClientError(
            "invalid_value",
            "too many pictures in one chunk",
            param="frames",
            frames=len(entries),
            limit=MAX_SEQUENCE_FRAMES,
        )
    total = sum(entry.size for entry in entries)
    if total != len(video) or any(entry.size <= 0 for entry in entries):
        raise ClientError(
            "invalid_value",
            "sizes must be positive and add up to the payload",
            param="frames",
            sum=total,
            payload=len(video),
        )
    pictures, at = [], 0
    for entry in entries:
        pictures.append(_picture(video[at : at + entry.size], entry.offset_ms))
        at += entry.size
    return tuple(sorted(pictures, key=lambda picture: picture.offset_ms))


def _picture(jpeg: bytes, offset_ms: int) -> DecodedFrame:
    if not 0 <= offset_ms <= MAX_CHUNK_MS:
        raise ClientError(
            "invalid_value",
            "an offset is relative to the chunk's start",
            param="frames",
            offset_ms=offset_ms,
            limit=MAX_CHUNK_MS,
        )
    if image_size(jpeg, "video").format is not ImageFormat.JPEG:
        raise ClientError("invalid_image", "a sequence holds JPEG pictures only", param="video")
    return DecodedFrame(offset_ms, jpeg)
