"""Arbitrary input runs in, clip parts out: sound in chunks of 2 s, camera frames in pairs on the 2 fps grid.

Frames. Slot k of a clip stands for the moment `start + 8000·k` and belongs to the clip if the clip's sound goes beyond
that moment. It shows the frame captured nearest to it, at most 4000 samples away (of two equally near, the earlier). A
slot that no frame is near shows the newest frame before it, if that is at most `HOLD_SAMPLES` old: a slow camera is
held, one that was switched off is not, and a clip may begin with a frame from before its sound. A pair with one empty
slot shows the other twice; with two it is left out.

A pair leaves when the clock reaches the end of its second: 250 ms after the last moment its second slot looks at, which
is how late a frame may arrive. Later ones are counted and can only be held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streaming.media import (
    CHUNK_SAMPLES,
    FRAMES_PER_PAIR,
    SAMPLE_BYTES,
    SLOT_SAMPLES,
    ClipKind,
    ClipPart,
    ClipStart,
    FramePair,
    MediaChunk,
    VideoFrame,
    chunk_end,
    pair_end,
)

SLOT_REACH = SLOT_SAMPLES // 2
HOLD_SAMPLES = CHUNK_SAMPLES
"""How long a frame stands for what follows it."""
KEPT_SAMPLES = 2 * CHUNK_SAMPLES
"""How far behind the clock frames are kept: a clip may begin in the past, and look back from there."""
AHEAD_SAMPLES = CHUNK_SAMPLES
"""How far ahead of the sound a frame may be; a client's two streams drift no further than that."""
CELL_SAMPLES = SLOT_SAMPLES // 4
"""At most one frame is kept per eighth of a second, the earliest, however fast the camera is."""
MAX_FRAME_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class FrameCounts:
    """What became of the frames of a session."""

    received: int = 0
    late: int = 0
    """Their pair had left: held for the next slots at best."""
    early: int = 0
    """Too far ahead of the sound."""
    crowded: int = 0
    """Another frame stands for the same eighth of a second, or the store was full."""
    unseen: int = 0
    """The clip had begun without pictures when they came."""


class FrameStore:
    """The camera's recent frames by capture time; bounded in time, number and bytes."""

    def __init__(self, counts: FrameCounts, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._frames: dict[int, VideoFrame] = {}  # by cell
        self._counts = counts
        self._num_bytes = 0
        self._max_bytes = max_bytes

    def add(self, frame: VideoFrame) -> None:
        cell = frame.capture_sample // CELL_SAMPLES
        held = self._frames.get(cell)
        if held is not None and held.capture_sample <= frame.capture_sample:
            self._counts.crowded += 1
            return
        if held is not None:
            self._drop(cell)
        self._frames[cell] = frame
        self._num_bytes += len(frame.jpeg)
        while self._num_bytes > self._max_bytes and len(self._frames) > 1:
            self._drop(min(self._frames))

    def forget_before(self, sample: int) -> None:
        for cell in [c for c, f in self._frames.items() if f.capture_sample < sample]:
            self._num_bytes -= len(self._frames.pop(cell).jpeg)

    def shown_at(self, moment: int) -> VideoFrame | None:
        """Return what a slot at `moment` shows."""
        frames = self._frames.values()
        near = [f for f in frames if moment - SLOT_REACH <= f.capture_sample < moment + SLOT_REACH]
        if near:
            return min(near, key=lambda f: (abs(f.capture_sample - moment), f.capture_sample))
        held = [f for f in frames if moment - HOLD_SAMPLES <= f.capture_sample < moment]
        return max(held, key=lambda f: f.capture_sample, default=None)

    def _drop(self, cell: int) -> None:
        self._num_bytes -= len(self._frames.pop(cell).jpeg)
        self._counts.crowded += 1


@dataclass(slots=True)
class _OpenClip:
    start_sample: int
    has_sound: bool
    kind: ClipKind | None = None
    """Known once the first part leaves."""
    num_samples: int = 0
    pcm: bytearray = field(default_factory=bytearray)
    num_chunks: int = 0
    num_pairs: int = 0
    """Pairs decided, left out ones included."""


class Chunker:
    """Cuts one session's input; owned by the session. Between clips it only keeps recent frames.

    `open` begins a clip, `push` feeds it, `close` ends it; `add_frame` at any time. Sound and its clock go together:
    whoever keeps sound for a pre-roll opens the clip in the past and pushes the kept sound first.
    """

    def __init__(self) -> None:
        self.counts = FrameCounts()
        self._store = FrameStore(self.counts)
        self._clip: _OpenClip | None = None

    @property
    def is_open(self) -> bool:
        return self._clip is not None

    def open(self, start_sample: int, *, has_sound: bool = True) -> None:
        """Begin a clip at `start_sample` of the input clock."""
        assert self._clip is None, "the last clip is still open"
        self._clip = _OpenClip(start_sample, has_sound)

    def add_frame(self, frame: VideoFrame, now_sample: int) -> None:
        """Take a camera frame; `now_sample` is the input clock."""
        self.counts.received += 1
        if frame.capture_sample > now_sample + AHEAD_SAMPLES:
            self.counts.early += 1
            return
        self.counts.late += frame.capture_sample < self._first_open_moment()
        self.counts.unseen += self._clip is not None and self._clip.kind is ClipKind.SOUND
        self._store.add(frame)
        self._store.forget_before(now_sample - KEPT_SAMPLES)

    def push(self, pcm: bytes) -> list[ClipPart]:
        """Take sound of the open clip, whole int16 samples; return the parts that are complete."""
        clip = self._require_clip()
        assert clip.has_sound, "this clip was opened without sound; call `advance`"
        assert len(pcm) % SAMPLE_BYTES == 0, "half a sample: `SoundReader` joins those"
        clip.pcm += pcm
        return self._advance(clip, len(pcm) // SAMPLE_BYTES)

    def advance(self, num_samples: int) -> list[ClipPart]:
        """Let the clock of a clip without sound run on; return the pairs that are complete."""
        clip = self._require_clip()
        assert not clip.has_sound, "the clock of a clip with sound is its sound; call `push`"
        return self._advance(clip, num_samples)

    def close(self) -> list[ClipPart]:
        """End the clip here; return its remaining parts, the last chunk among them."""
        clip = self._require_clip()
        parts: list[ClipPart] = []
        while clip.num_pairs * FRAMES_PER_PAIR * SLOT_SAMPLES < clip.num_samples:
            self._emit_pair(clip, parts)
        self._emit_chunk(clip, parts, is_last=True)
        self._clip = None
        return parts

    def discard(self) -> None:
        """Forget the open clip, if any; parts of it that have left are the caller's to revoke."""
        self._clip = None

    def _advance(self, clip: _OpenClip, num_samples: int) -> list[ClipPart]:
        clip.num_samples += num_samples
        parts: list[ClipPart] = []
        while True:
            next_pair, next_chunk = pair_end(clip.num_pairs), chunk_end(clip.num_chunks)
            if min(next_pair, next_chunk) > clip.num_samples:
                return parts
            if next_pair < next_chunk:
                self._emit_pair(clip, parts)
            elif clip.has_sound:
                self._emit_chunk(clip, parts, is_last=False)
            else:
                clip.num_chunks += 1

    def _emit_pair(self, clip: _OpenClip, parts: list[ClipPart]) -> None:
        index = clip.num_pairs
        clip.num_pairs += 1
        if clip.kind is ClipKind.SOUND:
            return
        frames = self._frames_of_pair(clip, index)
        if frames:
            video = ClipKind.VIDEO_WITH_SOUND if clip.has_sound else ClipKind.VIDEO
            self._start(clip, video, parts)
            parts.append(FramePair(index, frames))

    def _frames_of_pair(self, clip: _OpenClip, index: int) -> tuple[VideoFrame, ...]:
        slots = range(index * FRAMES_PER_PAIR, (index + 1) * FRAMES_PER_PAIR)
        moments = [k * SLOT_SAMPLES for k in slots if k * SLOT_SAMPLES < clip.num_samples]
        shown = [self._store.shown_at(clip.start_sample + moment) for moment in moments]
        return tuple(dict.fromkeys(frame for frame in shown if frame is not None))

    def _emit_chunk(self, clip: _OpenClip, parts: list[ClipPart], *, is_last: bool) -> None:
        self._start(clip, ClipKind.SOUND if clip.has_sound else ClipKind.VIDEO, parts)
        index = clip.num_chunks
        clip.num_chunks += 1
        begin = chunk_end(index - 1) if index else 0
        end = len(clip.pcm) if is_last else (chunk_end(index) - begin) * SAMPLE_BYTES
        parts.append(MediaChunk(index, clip.start_sample + begin, bytes(clip.pcm[:end]), is_last))
        del clip.pcm[:end]

    def _start(self, clip: _OpenClip, kind: ClipKind, parts: list[ClipPart]) -> None:
        if clip.kind is None:
            clip.kind = kind
            parts.append(ClipStart(kind, clip.start_sample))

    def _first_open_moment(self) -> int:
        """No slot still to be filled is near an earlier frame."""
        if self._clip is None or self._clip.num_pairs == 0:
            return -(2**62)
        return self._clip.start_sample + pair_end(self._clip.num_pairs - 1) - SLOT_REACH

    def _require_clip(self) -> _OpenClip:
        assert self._clip is not None, "no clip is open"
        return self._clip
