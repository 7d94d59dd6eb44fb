"""Sound as bytes: int16 and G.711 in and out at any rate, silence, WAV files.

Inside, sound is int16 little-endian mono: 16 kHz on its way to the model, 24 kHz on its way out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
import numpy.typing as npt

from streaming.errors import ClientError
from streaming.media import INPUT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE, SAMPLE_BYTES
from streaming.resample import Resampler, Samples, require_rate

Codes = npt.NDArray[np.uint8]
INT16 = np.dtype("<i2")
FULL_SCALE = 32768.0


class Encoding(StrEnum):
    """How a sample is written."""

    PCM16 = "pcm16"
    ULAW = "ulaw"
    ALAW = "alaw"


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """Mono sound as a stranger sends or wants it.

    Raises:
        ClientError: the rate is out of range.
    """

    encoding: Encoding
    rate: int

    def __post_init__(self) -> None:
        require_rate(self.rate)

    @property
    def bytes_per_sample(self) -> int:
        return SAMPLE_BYTES if self.encoding is Encoding.PCM16 else 1


def to_float(pcm: bytes) -> npt.NDArray[np.float32]:
    """int16 bytes to float32 in [−1, 1)."""
    return np.frombuffer(pcm, INT16).astype(np.float32) / np.float32(FULL_SCALE)


def from_float(samples: npt.NDArray[np.float32]) -> bytes:
    """float32 to int16 bytes, rounded; beyond full scale is clipped, what is not a number is silence."""
    scaled = np.clip(np.nan_to_num(samples), -1.0, 1.0) * np.float32(FULL_SCALE)
    return bytes(np.minimum(np.rint(scaled), 32767).astype(INT16))


def silence(num_samples: int) -> bytes:
    """int16 bytes of silence."""
    return bytes(num_samples * SAMPLE_BYTES)


class SoundReader:
    """Bytes of a format, cut anywhere, to int16 bytes at 16 kHz. Any slicing yields the same bytes in the end."""

    def __init__(self, sound_format: SoundFormat) -> None:
        self._format = sound_format
        self._resampler = Resampler(sound_format.rate, INPUT_SAMPLE_RATE)
        self._odd_byte = b""

    def push(self, received: bytes) -> bytes:
        """Take bytes; return the samples that became final."""
        whole = self._odd_byte + received if self._odd_byte else received
        end = len(whole) - len(whole) % self._format.bytes_per_sample
        self._odd_byte = whole[end:]
        return self._resampler.push(_decode(self._format.encoding, whole[:end])).tobytes()

    def flush(self) -> bytes:
        """Return the rest, as if silence followed, and begin anew; half a sample is dropped."""
        self._odd_byte = b""
        return self._resampler.flush().tobytes()


class SoundWriter:
    """int16 bytes at 24 kHz to bytes of a format."""

    def __init__(self, sound_format: SoundFormat) -> None:
        self._format = sound_format
        self._resampler = Resampler(OUTPUT_SAMPLE_RATE, sound_format.rate)

    def push(self, pcm: bytes) -> bytes:
        """Take whole samples; return what became final."""
        return _encode(self._format.encoding, self._resampler.push(np.frombuffer(pcm, INT16)))

    def flush(self) -> bytes:
        """Return the rest and begin anew."""
        return _encode(self._format.encoding, self._resampler.flush())


def _decode(encoding: Encoding, encoded: bytes) -> Samples:
    if encoding is Encoding.PCM16:
        return np.frombuffer(encoded, INT16)
    table = ulaw_decoding() if encoding is Encoding.ULAW else alaw_decoding()
    return table[np.frombuffer(encoded, np.uint8)]


def _encode(encoding: Encoding, samples: Samples) -> bytes:
    if encoding is Encoding.PCM16:
        return samples.tobytes()
    table = ulaw_encoding() if encoding is Encoding.ULAW else alaw_encoding()
    return table[samples.view(np.uint16)].tobytes()


# ---- G.711 (ITU-T G.711, table by table: 256 codes to 16-bit samples and back)

_ULAW_BIAS = 0x84
_ULAW_CLIP = 32635
_ALAW_MASK = 0x55


@cache
def ulaw_decoding() -> Samples:
    """Sample of each of the 256 mu-law codes."""
    code = ~np.arange(256) & 0xFF
    size = ((((code & 0x0F) << 3) + _ULAW_BIAS) << ((code & 0x70) >> 4)) - _ULAW_BIAS
    samples: Samples = np.where(code & 0x80, -size, size).astype(np.int16)
    return samples


@cache
def alaw_decoding() -> Samples:
    """Sample of each of the 256 A-law codes."""
    code = np.arange(256) ^ _ALAW_MASK
    segment = (code & 0x70) >> 4
    size = ((code & 0x0F) << 4) + np.where(segment, 0x108, 8)
    size = size << np.maximum(segment - 1, 0)
    samples: Samples = np.where(code & 0x80, size, -size).astype(np.int16)
    return samples


@cache
def ulaw_encoding() -> Codes:
    """mu-law code of each sample, by the sample's bits read as unsigned. Fourteen bits count."""
    sample = _all_samples() >> 2 << 2
    size = np.minimum(np.abs(sample), _ULAW_CLIP) + _ULAW_BIAS
    segment = np.floor(np.log2(size >> 7)).astype(np.int64)
    code = segment << 4 | (size >> segment + 3) & 0x0F
    codes: Codes = (~np.where(sample < 0, code | 0x80, code) & 0xFF).astype(np.uint8)
    return codes


@cache
def alaw_encoding() -> Codes:
    """A-law code of each sample, by the sample's bits read as unsigned. Thirteen bits count."""
    sample = _all_samples() >> 3
    size = np.where(sample < 0, -sample - 1, sample)
    segment = np.maximum(np.floor(np.log2(np.maximum(size >> 4, 1))).astype(np.int64), 0)
    code = segment << 4 | (size >> np.maximum(segment, 1)) & 0x0F
    codes: Codes = (np.where(sample < 0, code, code | 0x80) ^ _ALAW_MASK).astype(np.uint8)
    return codes


def _all_samples() -> npt.NDArray[np.int64]:
    return np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int64)


# ---- WAV

_WAVE_PCM, _WAVE_FLOAT, _WAVE_ALAW, _WAVE_ULAW, _WAVE_EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_MAX_CHANNELS = 8


def write_wav(pcm: bytes, rate: int) -> bytes:
    """Return a WAV file of mono int16 samples."""
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(pcm),
        b"WAVE",
        b"fmt ",
        16,
        _WAVE_PCM,
        1,
        rate,
        rate * SAMPLE_BYTES,
        SAMPLE_BYTES,
        8 * SAMPLE_BYTES,
        b"data",
        len(pcm),
    )
    return header + pcm


def read_wav(file: bytes) -> tuple[bytes, int]:
    """Return mono int16 samples and their rate; several channels are averaged.

    Lengths in the file are taken as hints: a cut or streamed file is read as far as it goes.

    Raises:
        ClientError: not a WAV file of 8, 16, 24, 32-bit integers, 32-bit floats or G.711, up to 8 channels.
    """
    if file[:4] != b"RIFF" or file[8:12] != b"WAVE":
        raise ClientError("invalid_audio", "not a WAV file: it does not begin with RIFF … WAVE")
    chunks = _riff_chunks(file)
    layout = chunks.get(b"fmt ", b"")
    if len(layout) < 16 or b"data" not in chunks:
        raise ClientError("invalid_audio", "the WAV file has no complete fmt and data chunks")
    tag, num_channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == _WAVE_EXTENSIBLE and len(layout) >= 26:
        (tag,) = struct.unpack_from("<H", layout, 24)
    if not 1 <= num_channels <= _MAX_CHANNELS:
        raise ClientError(
            "invalid_audio", "too many channels", channels=num_channels, limit=_MAX_CHANNELS
        )
    require_rate(rate)
    samples = _wav_samples(tag, bits, num_channels, chunks[b"data"])
    mean = samples.reshape(-1, num_channels).mean(axis=1)
    return np.clip(np.rint(mean), -32768, 32767).astype(INT16).tobytes(), rate


def _riff_chunks(file: bytes) -> dict[bytes, bytes]:
    """First chunk of each name; a length that reaches beyond the file ends with it."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(file):
        name, length = struct.unpack_from("<4sI", file, at)
        chunks.setdefault(name, file[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return chunks


def _wav_samples(tag: int, bits: int, num_channels: int, body: bytes) -> npt.NDArray[np.float64]:
    """Samples in the int16 scale, channels side by side."""
    width = bits // 8
    if (tag, bits) not in {
        *((_WAVE_PCM, n) for n in (8, 16, 24, 32)),
        (_WAVE_FLOAT, 32),
        (_WAVE_ALAW, 8),
        (_WAVE_ULAW, 8),
    }:
        raise ClientError("invalid_audio", "unsupported WAV encoding", format_tag=tag, bits=bits)
    body = body[: len(body) - len(body) % (width * num_channels)]
    if tag == _WAVE_FLOAT:
        floats = np.nan_to_num(np.frombuffer(body, "<f4").astype(np.float64), posinf=1, neginf=-1)
        return np.clip(floats, -1.0, 1.0) * FULL_SCALE
    if tag != _WAVE_PCM:
        encoding = Encoding.ALAW if tag == _WAVE_ALAW else Encoding.ULAW
        return _decode(encoding, body).astype(np.float64)
    if width == 1:  # alone among the widths unsigned
        return (np.frombuffer(body, np.uint8).astype(np.float64) - 128.0) * 256.0
    # The bytes at the upper end of an int32, whatever their number.
    padded = np.zeros((len(body) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(body, np.uint8).reshape(-1, width)
    return padded.view("<i4")[:, 0] / 65536.0
