"""Input media on the input clock: sound in samples, camera frames by the sample at which they were captured.

The input clock of a session counts the 16 kHz samples received since the session began. A *clip* is one run of input
that the model hears and sees as a unit (a spoken turn, usually). Its parts leave the `Chunker` in this order:

    samples since the clip's start   0        16 000      32 000      48 000      64 000
    camera frame slots               0     1     2     3     4     5     6     7
    frame pairs                      └─ pair 0 ─┴─ pair 1 ──┴─ pair 2 ──┴─ pair 3 ─┘
    chunks of sound                  └────── chunk 0 ───────▶└────── chunk 1 ──────▶
                                                             40 samples over

Chunk c ends 40 samples behind its two seconds, because the last mel frame of a block hears that far: the chunk that
arrives is the chunk that can be encoded (see `docs/decisions/0004-chunk-cuts.md`).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

INPUT_SAMPLE_RATE = 16_000
OUTPUT_SAMPLE_RATE = 24_000
SAMPLE_BYTES = 2
"""int16."""
INPUT_SAMPLES_PER_ROW = 640
"""One audio row of the model: 40 ms."""

CHUNK_SAMPLES = 2 * INPUT_SAMPLE_RATE
LOOK_AHEAD_SAMPLES = 40
"""Samples behind a chunk's two seconds that its last mel frame hears."""

FRAMES_PER_SECOND = 2
SLOT_SAMPLES = INPUT_SAMPLE_RATE // FRAMES_PER_SECOND
FRAMES_PER_PAIR = 2
PAIR_SAMPLES = FRAMES_PER_PAIR * SLOT_SAMPLES
PAIRS_PER_CHUNK = CHUNK_SAMPLES // PAIR_SAMPLES


class VideoFrame(msgspec.Struct, frozen=True, array_like=True):
    """One camera frame as it was received; nobody has decoded it yet."""

    capture_sample: int
    """When it was captured, on the input clock. May be negative: captured before the first sound."""
    jpeg: bytes


class ClipKind(StrEnum):
    """What a clip holds; the model marks each kind differently, so it is known before the first part."""

    SOUND = "sound"
    VIDEO = "video"
    VIDEO_WITH_SOUND = "video_with_sound"


class ClipStart(msgspec.Struct, frozen=True, array_like=True):
    """Opens a clip; exactly one, before any other part."""

    kind: ClipKind
    start_sample: int
    """Where the clip begins on the input clock."""


class FramePair(msgspec.Struct, frozen=True, array_like=True):
    """The camera during one second of a clip."""

    index: int
    """Which second of the clip; grows, but skips seconds without a frame."""
    frames: tuple[VideoFrame, ...]
    """Two frames, or one that stands for both."""

    @property
    def chunk_index(self) -> int:
        return self.index // PAIRS_PER_CHUNK


class MediaChunk(msgspec.Struct, frozen=True, array_like=True):
    """The sound of one chunk of a clip. Every frame pair of the chunk has been sent before it.

    Any way of slicing the same input yields the same chunks.
    """

    index: int
    """0, 1, 2 … within the clip."""
    start_sample: int
    """Of the first sample of `pcm`, on the input clock. Without gaps: the next chunk starts where this one ends."""
    pcm: bytes
    """int16 little-endian mono at 16 kHz. The first chunk has 32 040 samples, later ones 32 000; the last one what is
    left, possibly nothing. Empty in a clip without sound."""
    is_last: bool
    """Closes the clip. Only this chunk is sent in a clip without sound."""

    @property
    def num_samples(self) -> int:
        return len(self.pcm) // SAMPLE_BYTES

    @property
    def end_sample(self) -> int:
        return self.start_sample + self.num_samples


ClipPart = ClipStart | FramePair | MediaChunk


def chunk_end(index: int) -> int:
    """Samples of a clip, from its start, that must have arrived before chunk `index` leaves."""
    return (index + 1) * CHUNK_SAMPLES + LOOK_AHEAD_SAMPLES


def pair_end(index: int) -> int:
    """Samples of a clip, from its start, at which pair `index` leaves."""
    return (index + 1) * PAIR_SAMPLES


def input_samples(duration_ms: int) -> int:
    """Input samples of a duration; exact."""
    return duration_ms * (INPUT_SAMPLE_RATE // 1000)


def input_ms(num_samples: int) -> int:
    """Whole milliseconds of `num_samples` of input."""
    return num_samples * 1000 // INPUT_SAMPLE_RATE


def output_samples(duration_ms: int) -> int:
    """Output samples of a duration; exact."""
    return duration_ms * (OUTPUT_SAMPLE_RATE // 1000)


def output_ms(num_samples: int) -> int:
    """Whole milliseconds of `num_samples` of reply audio."""
    return num_samples * 1000 // OUTPUT_SAMPLE_RATE
