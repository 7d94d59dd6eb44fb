"""One picture to a JPEG of bounded size. Runs in a decoder process only."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from server.media.jobs import Decoded, DecodedFrame, FaultCode, MediaFault, Stills
from server.media.sniff import image_size
from streaming.errors import ClientError

JPEG_QUALITY = 85
FORMATS = ("JPEG", "PNG", "WEBP")


def decode_still(job: Stills) -> Decoded:
    """Return the picture, or why there is none. Transparent parts become white, a camera's rotation is applied."""
    try:
        image_size(job.image)  # again: whoever sent the job may have forgotten to
        jpeg = _reencode(job.image, job.max_pixels)
    except ClientError as error:
        return _refusal(job, FaultCode(error.code), error.message)
    except MemoryError:
        return _refusal(job, FaultCode.IMAGE_TOO_LARGE, "decoding it takes too much memory")
    # What Pillow raises for broken files; SyntaxError is its own choice for PNG.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        return _refusal(
            job, FaultCode.INVALID_IMAGE, f"the picture cannot be decoded: {type(error).__name__}"
        )
    return Decoded(job.job_id, (DecodedFrame(0, jpeg),), is_job_done=True)


def scaled_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Return the largest size of the same shape that has at most `max_pixels`."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    # A side of less than one pixel leaves the other one too long for the shape; what counts is the sum.
    new_width = max(1, min(int(width * scale), max_pixels))
    return new_width, max(1, min(int(height * scale), max_pixels // new_width))


def write_jpeg(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def _reencode(image: bytes, max_pixels: int) -> bytes:
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        size = scaled_size(*opened.size, max_pixels)
        opened.draft("RGB", size)  # a JPEG is decoded at the next larger eighth
        # The large picture is not copied: the largest allowed ones only just fit into the process.
        small = _plain(opened).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return write_jpeg(ImageOps.exif_transpose(_opaque(small)))


def _plain(picture: Image.Image) -> Image.Image:
    """A picture whose values can be averaged: no palette, no 16 bits."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("1", "P", "PA"):
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture on white paper."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    flat = Image.new("RGB", layer.size, "white")
    flat.paste(layer, mask=layer.getchannel("A"))
    flat.info = picture.info  # which way is up
    return flat


def _refusal(job: Stills, code: FaultCode, message: str) -> Decoded:
    return Decoded(job.job_id, is_job_done=True, fault=MediaFault(code, message))
