"""Pictures as they were received to pixels: three file formats, sizes checked before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")


def decode_picture(
    encoded: bytes, max_pixels: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 [H, W, 3].

    Raises:
        ValueError: it is none of the formats, broken, or has more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width}x{height} pixels; the limit is {max_pixels} in all")
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as fault:
        raise ValueError(
            f"{len(encoded)} bytes are no readable {' / '.join(FORMATS)}: {fault}"
        ) from None
    except Image.DecompressionBombError as fault:
        raise ValueError(str(fault)) from None
