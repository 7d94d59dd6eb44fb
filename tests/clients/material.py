"""What clients say and show."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
from PIL import Image

from streaming.pcm import read_wav

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-parley-test"
VOICE = Path(__file__).parents[1] / "streaming" / "one_two_three.wav"
GET_TIME = {
    "type": "function",
    "name": "get_time",
    "description": "The time at a place",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
    },
}


@functools.cache
def speech(rate: int) -> bytes:
    """Somebody counts to three; PCM16."""
    pcm, file_rate = read_wav(VOICE.read_bytes())
    return soxr.resample(np.frombuffer(pcm, np.int16), file_rate, rate).tobytes()  # type: ignore[no-any-return]


def silence(rate: int, seconds: float) -> bytes:
    return bytes(2 * int(rate * seconds))


def turn(rate: int) -> bytes:
    """Speech, and silence in which turn detection notices its end."""
    return speech(rate) + silence(rate, 1.5)


def in_pieces(pcm: bytes, rate: int, ms: int = 100) -> Iterator[bytes]:
    """As a microphone delivers it."""
    size = 2 * rate * ms // 1000
    for start in range(0, len(pcm), size):
        yield pcm[start : start + size]


def base64_pieces(pcm: bytes, rate: int) -> list[str]:
    return [base64.b64encode(piece).decode() for piece in in_pieces(pcm, rate)]


@functools.cache
def picture(kind: str = "JPEG") -> bytes:
    """A red and blue picture of 224 × 168."""
    pixels = np.zeros((168, 224, 3), np.uint8)
    pixels[:, :112, 0] = pixels[:, 112:, 2] = 255
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


def data_uri(kind: str = "JPEG") -> str:
    return f"data:image/{kind.lower()};base64," + base64.b64encode(picture(kind)).decode()
