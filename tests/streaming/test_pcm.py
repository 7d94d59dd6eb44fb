"""Sound as bytes: any slicing, G.711 as the standard has it, WAV files from strangers."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import pcm
from streaming.errors import ClientError
from streaming.pcm import (
    INT16,
    Encoding,
    SoundFormat,
    SoundReader,
    SoundWriter,
    read_wav,
    write_wav,
)

ALL_SAMPLES = np.arange(-32768, 32768).astype(INT16).tobytes()

formats = st.builds(
    SoundFormat, st.sampled_from(Encoding), st.sampled_from([8_000, 16_000, 24_000, 44_100, 48_000])
)


@given(formats, st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=8))
def test_any_slicing_reads_the_same(sound: SoundFormat, received: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(received)) for cut in cuts), len(received)]
    reader, whole = SoundReader(sound), SoundReader(sound)
    pieces = [reader.push(received[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    sliced = b"".join([*pieces, reader.flush()])
    assert sliced == whole.push(received) + whole.flush()
    num_samples = len(received) // sound.bytes_per_sample
    assert len(sliced) == 2 * -(-num_samples * 16_000 // sound.rate)


@given(formats, st.lists(st.integers(0, 500), max_size=6))
def test_any_slicing_writes_the_same(sound: SoundFormat, sizes: list[int]) -> None:
    samples = np.random.default_rng(1).integers(-30000, 30000, sum(sizes)).astype(INT16).tobytes()
    writer, whole = SoundWriter(sound), SoundWriter(sound)
    edges = [0, *np.cumsum(sizes).tolist()]
    pieces = [writer.push(samples[2 * a : 2 * b]) for a, b in zip(edges, edges[1:], strict=False)]
    assert b"".join([*pieces, writer.flush()]) == whole.push(samples) + whole.flush()


def test_half_a_sample_waits_and_is_dropped_by_flush() -> None:
    reader = SoundReader(SoundFormat(Encoding.PCM16, 16_000))
    assert reader.push(b"\x01") == b""
    assert reader.push(b"\x02\x03") == b"\x01\x02"
    assert reader.flush() == b""
    assert reader.push(b"\x04\x05") == b"\x04\x05"


def test_g711_is_the_standard_librarys() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop", reason="gone from Python 3.13 on")
    codes = bytes(range(256))
    assert pcm.ulaw_decoding().astype(INT16).tobytes() == audioop.ulaw2lin(codes, 2)
    assert pcm.alaw_decoding().astype(INT16).tobytes() == audioop.alaw2lin(codes, 2)
    assert pcm._encode(Encoding.ULAW, np.frombuffer(ALL_SAMPLES, INT16)) == audioop.lin2ulaw(
        ALL_SAMPLES, 2
    )
    assert pcm._encode(Encoding.ALAW, np.frombuffer(ALL_SAMPLES, INT16)) == audioop.lin2alaw(
        ALL_SAMPLES, 2
    )


@pytest.mark.parametrize(
    ("decoding", "encoding", "num_ambiguous"),
    [(pcm.ulaw_decoding, pcm.ulaw_encoding, 1), (pcm.alaw_decoding, pcm.alaw_encoding, 0)],
)
def test_g711_codes_survive_the_trip(decoding, encoding, num_ambiguous) -> None:  # type: ignore[no-untyped-def]
    """All but minus zero of mu-law, which is zero."""
    back = encoding()[decoding().view(np.uint16)]
    assert np.count_nonzero(back != np.arange(256)) == num_ambiguous


@given(st.lists(st.floats(width=32), max_size=50))
def test_floats_become_samples_without_wrapping(values: list[float]) -> None:
    samples = np.frombuffer(pcm.from_float(np.array(values, np.float32)), INT16)
    wanted = np.clip(np.nan_to_num(np.array(values), nan=0.0), -1, 1) * 32768
    assert np.all(np.abs(samples - np.clip(wanted, -32768, 32767)) <= 0.5)


def test_samples_survive_the_trip_through_floats() -> None:
    assert pcm.from_float(pcm.to_float(ALL_SAMPLES)) == ALL_SAMPLES
    assert pcm.silence(3) == bytes(6)


def test_wav_files_survive_the_trip() -> None:
    assert read_wav(write_wav(ALL_SAMPLES, 24_000)) == (ALL_SAMPLES, 24_000)


def wav(tag: int, channels: int, bits: int, body: bytes, rate: int = 16_000) -> bytes:
    layout = struct.pack("<HHIIHH", tag, channels, rate, 0, 0, bits)
    riff = b"RIFF\xff\xff\xff\xffWAVE" + b"LIST" + struct.pack("<I", 3) + b"odd\0"
    return riff + b"fmt " + struct.pack("<I", 16) + layout + b"data" + b"\xff" * 4 + body


@pytest.mark.parametrize(
    ("tag", "bits", "body", "samples"),
    [
        (1, 8, bytes([0, 128, 255]), [-32768, 0, 32512]),
        (1, 16, struct.pack("<3h", -32768, 0, 32767), [-32768, 0, 32767]),
        (1, 24, b"\x00\x00\x80" + b"\x00\x00\x00" + b"\xff\xff\x7f", [-32768, 0, 32767]),
        (1, 32, struct.pack("<3i", -(2**31), 0, 2**31 - 1), [-32768, 0, 32767]),
        (3, 32, struct.pack("<4f", -1, 0.5, 2.0, float("nan")), [-32768, 16384, 32767, 0]),
        (7, 8, b"\x00\xff", [-32124, 0]),
        (6, 8, b"\x2a\xd5", [-32256, 8]),
    ],
)
def test_every_wav_encoding_is_read(tag: int, bits: int, body: bytes, samples: list[int]) -> None:
    """The lengths in these files are lies; they are read as far as they go."""
    read, rate = read_wav(wav(tag, 1, bits, body))
    assert (np.frombuffer(read, INT16).tolist(), rate) == (samples, 16_000)


def test_channels_are_averaged_and_half_a_sample_is_dropped() -> None:
    read, _ = read_wav(wav(1, 2, 16, struct.pack("<5h", 100, 200, -3, -5, 7)))
    assert np.frombuffer(read, INT16).tolist() == [150, -4]


def test_extensible_files_are_read_by_their_inner_format() -> None:
    inner = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16_000, 0, 0, 16, 22, 16, 0)
    inner += struct.pack("<H", 1) + bytes(14)
    file = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(inner)) + inner + b"data\x04\0\0\0abcd"
    assert read_wav(file) == (b"abcd", 16_000)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"RIFF",
        b"OggS" + bytes(100),
        write_wav(b"", 16_000)[:30],
        wav(1, 0, 16, b"ab"),
        wav(1, 9, 16, b"ab"),
        wav(1, 1, 12, b"ab"),
        wav(3, 1, 64, bytes(8)),
        wav(85, 1, 16, b"mp3"),
        wav(1, 1, 16, b"ab", rate=2**31),
        wav(1, 1, 16, b"ab", rate=0),
    ],
)
def test_what_is_no_wav_file_is_refused(file: bytes) -> None:
    with pytest.raises(ClientError):
        read_wav(file)


@given(st.binary(max_size=100))
def test_damaged_wav_files_raise_nothing_else(damage: bytes) -> None:
    file = bytearray(write_wav(bytes(50), 16_000))
    for at, byte in zip(range(8, 94), damage, strict=False):
        file[at] ^= byte
    try:
        read_wav(bytes(file))
    except ClientError as error:
        assert error.code in {"invalid_audio", "invalid_value"}
