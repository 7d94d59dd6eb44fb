"""A picture's size is known before any library opens it, whatever the file claims."""

from __future__ import annotations

import io
import struct
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.media.sniff import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_SIDE,
    image_size,
    split_sequence,
)
from streaming.errors import ClientError
from tests.server.media.files import picture, with_size

KINDS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"subsampling": 0, "restart_marker_blocks": 1}),
    ("JPEG", {"icc_profile": bytes(200_000), "exif": bytes(50_000), "comment": b"\xff\xc0" * 90}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0" + bytes(20)}),  # the extended layout
]


@pytest.mark.parametrize(("format_", "options"), KINDS)
@pytest.mark.parametrize("size", [(1, 1), (333, 17), (16, 4096), (640, 480)])
def test_the_size_is_the_one_a_library_finds(
    format_: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    for mode in ("RGB", "L", "CMYK") if format_ == "JPEG" else ("RGB", "L", "RGBA"):
        found = image_size(picture(format_, size, mode, **options))
        assert (found.format.name, found.width, found.height) == (format_, *size)


def test_a_jpeg_of_one_pass_can_go_as_it_is_and_nothing_else_can() -> None:
    plain = image_size(picture("JPEG", (640, 480)))
    assert plain.can_go_as_it_is(640 * 480)
    assert not plain.can_go_as_it_is(640 * 480 - 1)
    for format_, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})):
        assert not image_size(picture(format_, (8, 8), **options)).can_go_as_it_is(64)


def test_a_jpeg_of_many_passes_cannot_go_as_it_is() -> None:
    jpeg = picture("JPEG")
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    assert image_size(jpeg[:-2] + scan * 3 + b"\xff\xd9").is_simple
    assert not image_size(jpeg[:-2] + scan * 4 + b"\xff\xd9").is_simple


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(4097, 1), (1, 4097), (16_000, 16_000)])
def test_too_many_pixels_are_refused_with_the_limit(format_: str, size: tuple[int, int]) -> None:
    with pytest.raises(ClientError) as caught:
        image_size(with_size(picture(format_), *size), "item.content.0.image_url")
    assert caught.value.code == "image_too_large"
    assert caught.value.param == "item.content.0.image_url"
    assert caught.value.facts == {"width": size[0], "height": size[1], "limit": MAX_IMAGE_SIDE}


def test_a_file_of_too_many_bytes_is_refused() -> None:
    jpeg = picture("JPEG")
    image_size(jpeg + bytes(MAX_IMAGE_BYTES - len(jpeg)))
    with pytest.raises(ClientError) as caught:
        image_size(jpeg + bytes(MAX_IMAGE_BYTES - len(jpeg) + 1))
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_an_empty_picture_is_invalid(format_: str) -> None:
    for size in ((0, 10), (10, 0)):
        with pytest.raises(ClientError, match="invalid_image"):
            image_size(with_size(picture(format_), *size))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"GIF89a" + bytes(100),
        b"BM" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\x00\x00\x00\x00WEBPVP9 " + bytes(40),
        b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(40),
        b"RIFF\x00\x00\x00\x00WEBPVP8L" + bytes(40),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIDAT" + bytes(40),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0eIHDR" + bytes(40),
    ],
)
def test_what_is_no_picture_is_invalid(image: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        image_size(image)
    assert (caught.value.code, caught.value.param) == ("invalid_image", "image")


def _frame_header(marker: int = 0xC0, width: int = 64, height: int = 48) -> bytes:
    body = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (b"\xff\x00" + _frame_header(), "no marker"),
        (b"\x00\x00" + _frame_header(), "bytes between segments"),
        (b"\xff\xd0" + _frame_header(), "a restart outside a scan"),
        (b"\xff\xd8" + _frame_header(), "begun twice"),
        (b"\xff\xdc\x00\x04\x10\x00" + _frame_header(), "height given elsewhere"),
        (b"\xff\xe0\x00\x01" + _frame_header(), "a length that does not hold itself"),
        (_frame_header() + _frame_header(width=16_000), "two frame headers"),
        (_frame_header(0xC3), "lossless"),
        (_frame_header(0xC9), "arithmetic coding"),
        (b"", "a scan without a frame header"),
        (b"\xff" * 2_000 + _frame_header(), "fill without end"),
    ],
)
def test_what_two_readers_may_read_differently_is_invalid(middle: bytes, why: str) -> None:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(20) + b"\xff\xd9"
    assert image_size(b"\xff\xd8\xff\xff" + _frame_header()[1:] + scan).width == 64
    with pytest.raises(ClientError, match="invalid_image"):
        image_size(
            b"\xff\xd8" + (middle if middle[:1] == b"\xff" else b"\xff\xe0\0\2" + middle) + scan
        )


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
def test_a_changed_header_is_read_or_refused(
    kind: tuple[str, dict[str, object]], changes: list[tuple[int, int]]
) -> None:
    image = bytearray(picture(kind[0], **kind[1]))
    for position, value in changes:
        image[position % len(image)] = value
    try:
        size = image_size(bytes(image))
    except ClientError as error:
        assert error.code in ("invalid_image", "image_too_large")
        return
    assert 1 <= size.width <= MAX_IMAGE_SIDE
    assert 1 <= size.height <= MAX_IMAGE_SIDE
    try:
        with Image.open(io.BytesIO(image), formats=["JPEG", "PNG", "WEBP"]) as opened:
            assert opened.size == (size.width, size.height)
    except (OSError, SyntaxError, ValueError):
        pass  # the header was right, what follows is not


@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 10_000))
def test_a_cut_header_is_invalid_and_a_whole_one_is_enough(format_: str, position: int) -> None:
    image = picture(format_)
    try:
        size = image_size(image[: position % len(image)])
    except ClientError as error:
        assert error.code == "invalid_image"
    else:
        assert size == image_size(image)


@pytest.mark.parametrize(
    "image",
    [
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2_000_000,
        b"\xff\xd8" + b"\xff" * 8_000_000,
        picture("JPEG")[:-2] + b"\xff\xda" * 4_000_000,
    ],
)
def test_no_file_takes_long_to_look_at(image: bytes) -> None:
    begun = time.process_time()
    try:
        image_size(image[:MAX_IMAGE_BYTES])
    except ClientError:
        pass
    assert time.process_time() - begun < 0.05


# ---- sequences


@dataclass
class Entry:
    size: int
    offset_ms: int


def test_a_sequence_is_cut_apart_in_order_of_time() -> None:
    jpegs = [picture("JPEG", (8 + index, 8)) for index in range(3)]
    entries = [Entry(len(jpeg), offset) for jpeg, offset in zip(jpegs, (0, 900, 500), strict=True)]
    frames = split_sequence(b"".join(jpegs), entries)
    assert [frame.offset_ms for frame in frames] == [0, 500, 900]
    assert [frame.jpeg for frame in frames] == [jpegs[0], jpegs[2], jpegs[1]]
    assert split_sequence(b"", []) == ()


@pytest.mark.parametrize(
    ("sizes", "offset_ms", "code"),
    [
        ([-1], 0, "invalid_value"),  # relative to the payload's length
        ([0], -1, "invalid_value"),
        ([0], 10_001, "invalid_value"),
        ([1], 0, "invalid_value"),
        ([5, -5], 0, "invalid_value"),
        ([0, 0], 0, "invalid_value"),
        ([-100, 100], 0, "invalid_image"),
    ],
)
def test_a_sequence_that_does_not_add_up_is_refused(
    sizes: list[int], offset_ms: int, code: str
) -> None:
    jpeg = picture("JPEG")
    entries = [Entry(sizes[0] + len(jpeg), offset_ms), *(Entry(size, 0) for size in sizes[1:])]
    with pytest.raises(ClientError) as caught:
        split_sequence(jpeg, entries)
    assert caught.value.code == code
    assert caught.value.param == ("frames" if code == "invalid_value" else "video")


def test_a_sequence_holds_a_bounded_number_of_jpegs_only() -> None:
    jpeg, png = picture("JPEG"), picture("PNG")
    split_sequence(jpeg * 600, [Entry(len(jpeg), 0)] * 600)
    with pytest.raises(ClientError, match="too many"):
        split_sequence(jpeg * 601, [Entry(len(jpeg), 0)] * 601)
    with pytest.raises(ClientError, match="JPEG"):
        split_sequence(png, [Entry(len(png), 0)])
