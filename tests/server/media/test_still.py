"""Any picture becomes an upright, opaque JPEG of bounded size, or a fault with a code of the protocol."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.media.jobs import Decoded, FaultCode, Stills
from server.media.still import decode_still, scaled_size
from tests.server.media.files import picture, with_size


def _decode(image: bytes, max_pixels: int = 100_000) -> Decoded:
    decoded = decode_still(Stills("job", image, max_pixels))
    assert decoded.key == "job"
    assert decoded.is_job_done
    assert (decoded.fault is None) == (len(decoded.frames) == 1)
    return decoded


def _pixels(decoded: Decoded) -> np.ndarray:
    with Image.open(io.BytesIO(decoded.frames[0].jpeg), formats=["JPEG"]) as opened:
        assert opened.mode == "RGB"
        return np.asarray(opened)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_small_picture_keeps_its_size_and_colour(format_: str, mode: str) -> None:
    pixels = _pixels(_decode(picture(format_, (65, 31), mode)))
    assert pixels.shape == (31, 65, 3)
    expected = (90, 90, 90) if mode == "L" else (0x33, 0x66, 0x99)
    # Written twice as JPEG or WebP, which round colours to subsampled differences.
    assert np.abs(pixels.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_a_large_picture_is_scaled_down_with_its_shape(format_: str) -> None:
    pixels = _pixels(_decode(picture(format_, (2000, 1000)), 20_000))
    assert pixels.shape == (100, 200, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    encoded = io.BytesIO()
    Image.new("RGBA", (16, 16), (10, 20, 30, 0)).convert(mode).save(
        encoded, "PNG", **({"transparency": 0} if mode == "P" else {})
    )
    assert _pixels(_decode(encoded.getvalue())).min() >= 250


def test_sixteen_bits_of_grey_become_eight() -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.full((16, 16), 0x8080, np.uint16)).save(encoded, "PNG")
    assert np.abs(_pixels(_decode(encoded.getvalue())).astype(int) - 0x80).max() <= 1


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_cameras_rotation_is_applied(format_: str, mode: str) -> None:
    if (format_, mode) == ("JPEG", "RGBA"):
        mode = "L"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright: turn by 90° clockwise to see it right
    encoded = io.BytesIO()
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).convert(mode).save(encoded, format_, exif=exif)
    turned = _pixels(_decode(encoded.getvalue()))
    assert turned.shape == (80, 40, 3)
    assert turned[:15].min() > 200
    assert turned[25:].max() < 50


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 1_000_000))
def test_a_scaled_size_obeys_its_limit_and_keeps_the_shape(
    width: int, height: int, max_pixels: int
) -> None:
    new_width, new_height = scaled_size(width, height, max_pixels)
    assert 1 <= new_width <= width
    assert 1 <= new_height <= height
    assert new_width * new_height <= max_pixels
    if width * height <= max_pixels:
        assert (new_width, new_height) == (width, height)
    elif new_width > 1 and new_height > 1:
        # Each side is rounded down to a whole pixel.
        assert new_width / (new_height + 1) <= width / height <= (new_width + 1) / new_height


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"", FaultCode.INVALID_IMAGE),
        (b"GIF89a" + bytes(100), FaultCode.INVALID_IMAGE),
        (picture("PNG", (600, 400))[:-400], FaultCode.INVALID_IMAGE),
        (picture("WEBP", (600, 400))[:-40], FaultCode.INVALID_IMAGE),
        (picture("JPEG", (600, 400))[:-400], FaultCode.INVALID_IMAGE),
        (with_size(picture("PNG"), 4096, 4096), FaultCode.INVALID_IMAGE),
        (with_size(picture("PNG"), 16_000, 16_000), FaultCode.IMAGE_TOO_LARGE),
        (with_size(picture("JPEG"), 65_535, 65_535), FaultCode.IMAGE_TOO_LARGE),
        (with_size(picture("WEBP"), 16_383, 16_383), FaultCode.IMAGE_TOO_LARGE),
    ],
)
def test_a_bad_picture_is_a_fault(image: bytes, code: FaultCode) -> None:
    fault = _decode(image).fault
    assert fault is not None
    assert fault.code is code
    assert fault.message
