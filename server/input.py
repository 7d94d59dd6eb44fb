"""Input: what the user says and shows, from the bytes of the client to utterances.

    append ─▶ reader ─▶ 16 kHz ─▶ kept ──────────────▶ chunker ─▶ pieces of the utterance ─▶ context
                           └─▶ speech detection ──▲            ▲
                               (until, events) ───┘   camera ──┘

With speech detection an utterance opens in the past, where the detector says speech began, and takes sound only as far
as the detector has judged. Without, every sample goes into the open utterance at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.camera import Camera, frame_stride
from streaming.chunker import AHEAD_SAMPLES, Chunker
from streaming.media import (
    INPUT_SAMPLE_RATE,
    SAMPLE_BYTES,
    SLOT_SAMPLES,
    ClipKind,
    ClipPart,
    ClipStart,
    FramePair,
    VideoFrame,
    input_ms,
    input_samples,
)
from streaming.pcm import SoundReader

if TYPE_CHECKING:
    from server.settings import VideoSettings
    from streaming.pcm import SoundFormat
    from streaming.vad import VadSettings

MIN_KEPT_MS = 500
STEP_SAMPLES = INPUT_SAMPLE_RATE
"""Sound goes to the chunker in steps of at most so much, as frames may be only a little ahead of it."""
MAX_STILLS = 4
"""A picture costs as much as seconds of sound."""


@dataclass(slots=True)
class Utterance:
    """What the user said in one go; becomes a user item."""

    item_id: str
    serial: int
    start_sample: int
    end_sample: int
    """As far as sound has been taken."""
    has_sound: bool = True
    pieces: list[ClipPart] = field(default_factory=list)
    stills: list[VideoFrame] = field(default_factory=list)
    """Frames that came when its clip had begun without pictures: shown behind it."""
    num_frames: int = 0
    num_thinned: int = 0

    @property
    def num_samples(self) -> int:
        return self.end_sample - self.start_sample


class InputBuffer:
    """The user's sound and frames; owned by `Turns`."""

    def __init__(self, sound_format: SoundFormat, rules: VideoSettings) -> None:
        self.camera = Camera()
        self.rules = rules
        self.clock_sample = 0
        """Samples appended since the session began."""
        self.utterance: Utterance | None = None
        self.to_hear: list[bytes | VadSettings | int] = []
        """For the speech thread, drained by the session."""
        self._format = sound_format
        self._reader = SoundReader(sound_format)
        self._vad: VadSettings | None = None
        self._offset = (
            0  # listener sample 0 on our clock: it does not hear what comes while detection is off
        )
        self._num_given = 0
        self._kept = bytearray()
        self._kept_from = 0
        self._free_from = 0
        self._judged_until = 0
        self._chunker = Chunker()

    @property
    def clock_ms(self) -> int:
        return input_ms(self.clock_sample)

    @property
    def is_listening(self) -> bool:
        """Speech is detected, rather than declared by the client."""
        return self._vad is not None

    @property
    def pending_ms(self) -> int:
        """Sound that a commit would take now."""
        if self.utterance is not None:
            return input_ms(self.clock_sample - self.utterance.start_sample)
        # What has been judged and is no speech is kept only for a pre-roll.
        return input_ms(self.clock_sample - max(self._judged_until, self._free_from))

    def set_format(self, sound_format: SoundFormat) -> None:
        """Change how what is appended from now on is encoded."""
        if sound_format != self._format:
            self._format = sound_format
            self._reader = SoundReader(sound_format)

    def set_detection(self, vad: VadSettings | None) -> None:
        """Detect speech, with these settings from the next decision on, or no longer."""
        if vad == self._vad:
            return
        was_listening, self._vad = self.is_listening, vad
        if vad is None:
            if self.utterance is not None:
                self._push_to(self.clock_sample)
            self._trim(self.clock_sample)
            return
        self.to_hear.append(vad)
        if not was_listening:
            self._offset = self.clock_sample - self._num_given
            self.clear()

    def read(self, received: bytes) -> bytes:
        """Return the samples at 16 kHz that became final with what the client sent."""
        return self._reader.push(received)

    def finish_reading(self) -> None:
        """Take the samples for which the reader waits for what follows."""
        self.append(self._reader.flush())

    def append(self, pcm: bytes) -> None:
        """Take samples at 16 kHz."""
        if not pcm:
            return
        self._kept += pcm
        num_samples = len(pcm) // SAMPLE_BYTES
        self.clock_sample += num_samples
        if self._vad is not None:
            self._num_given += num_samples
            self.to_hear.append(pcm)

    def our_sample(self, listener_sample: int) -> int:
        """Return a sample of the speech thread on the session's clock."""
        return listener_sample + self._offset

    def can_begin(self, at_sample: int) -> bool:
        """Speech from there on would be new, and not what a commit or clear has taken already."""
        return self.utterance is None and at_sample >= self._free_from

    def begin(self, at_sample: int, item_id: str, serial: int) -> Utterance:
        """Open an utterance; its sound is what was kept since `at_sample`."""
        assert self.utterance is None
        start = min(max(at_sample, self._kept_from), self.clock_sample)
        self._chunker = Chunker()
        self._chunker.open(start)
        self.camera.rewind(start - input_samples(self.rules.lookback_ms))
        self.utterance = Utterance(item_id, serial, start, start)
        return self.utterance

    def begin_kept(self, item_id: str, serial: int) -> Utterance:
        """Open an utterance with everything that is kept, if none is open."""
        return self.utterance or self.begin(self._kept_from, item_id, serial)

    def judge(self, until_sample: int) -> None:
        """Everything before has been judged: an open utterance takes it, else it is let go but for a pre-roll."""
        self._judged_until = max(self._judged_until, until_sample)
        if self.utterance is not None:
            self._push_to(until_sample)
            return
        preroll_ms = max(MIN_KEPT_MS, self._vad.prefix_padding_ms if self._vad else 0)
        self._trim(until_sample - input_samples(preroll_ms))

    def take_all(self) -> None:
        """Without detection: the open utterance takes everything at once."""
        self._push_to(self.clock_sample)

    def end(self, at_sample: int) -> Utterance:
        """Close the utterance there."""
        utterance = self.utterance
        assert utterance is not None
        self._push_to(at_sample)
        self._show_newest(utterance)
        self._take(utterance, self._chunker.close())
        self._keep_unseen(utterance)
        if not utterance.num_samples:
            utterance.pieces.clear()
            utterance.has_sound = False
        self._leave(utterance.end_sample)
        return utterance

    def end_here(self) -> Utterance:
        """Close the utterance at the clock; the detector is told that this one is over."""
        utterance = self.end(self.clock_sample)
        self._tell_detector()
        return utterance

    def end_frames(self, item_id: str, serial: int) -> Utterance:
        """Make an utterance of the frames alone."""
        shown = _thinned(self.camera.frames, self.rules.max_frames)
        start, end = shown[0].capture_sample, shown[-1].capture_sample + SLOT_SAMPLES
        self._chunker = Chunker()
        self._chunker.open(start, has_sound=False)
        utterance = Utterance(item_id, serial, start, start, has_sound=False)
        for frame in shown:
            self._advance_to(utterance, frame.capture_sample)
            self._chunker.add_frame(frame, frame.capture_sample)
        self._advance_to(utterance, end)
        self._take(utterance, self._chunker.close())
        utterance.num_thinned += len(self.camera) - len(shown)
        self.clear()
        return utterance

    def drop_unjudged(self, max_samples: int) -> bool:
        """Forget the oldest of more than `max_samples` that wait for the detector; True if there were."""
        if self.clock_sample - self._kept_from <= max_samples:
            return False
        if self.utterance is not None:
            self.clear()
        self._trim(self.clock_sample - max_samples // 2)
        return True

    def clear(self) -> None:
        """Forget sound and frames that are not committed."""
        self.camera.clear()
        self._reader = SoundReader(self._format)
        self._leave(self.clock_sample)
        self._tell_detector()

    # ---- inside

    def _push_to(self, sample: int) -> None:
        utterance = self.utterance
        assert utterance is not None
        while utterance.end_sample < min(sample, self.clock_sample):
            start = utterance.end_sample
            end = min(sample, self.clock_sample, start + STEP_SAMPLES)
            for frame in self.camera.take_until(start + AHEAD_SAMPLES):
                self._chunker.add_frame(frame, start)
            first, last = (SAMPLE_BYTES * (s - self._kept_from) for s in (start, end))
            utterance.end_sample = end
            self._take(utterance, self._chunker.push(bytes(self._kept[first:last])))
        self._trim(utterance.end_sample)

    def _show_newest(self, utterance: Utterance) -> None:
        """A frame that came behind the sound is a moment early in the last slot, rather than in none."""
        last = max(utterance.num_samples - 1, 0) // SLOT_SAMPLES * SLOT_SAMPLES
        moment = utterance.start_sample + last
        for frame in self.camera.take_until(utterance.end_sample + 1):
            shown = VideoFrame(min(frame.capture_sample, moment), frame.jpeg)
            self._chunker.add_frame(shown, utterance.end_sample)

    def _keep_unseen(self, utterance: Utterance) -> None:
        """A clip says at its first chunk whether it has pictures; a camera may be switched on later."""
        kinds = [part.kind for part in utterance.pieces if isinstance(part, ClipStart)]
        if kinds != [ClipKind.SOUND]:
            return
        first = utterance.start_sample - input_samples(self.rules.lookback_ms)
        frames = tuple(f for f in self.camera.frames if f.capture_sample >= first)
        utterance.stills = _thinned(frames, MAX_STILLS)
        utterance.num_frames += len(utterance.stills)
        utterance.num_thinned += len(frames) - len(utterance.stills)

    def _advance_to(self, utterance: Utterance, sample: int) -> None:
        self._take(utterance, self._chunker.advance(max(0, sample - utterance.end_sample)))
        utterance.end_sample = max(utterance.end_sample, sample)

    def _take(self, utterance: Utterance, parts: list[ClipPart]) -> None:
        for part in parts:
            if isinstance(part, FramePair):
                stride = frame_stride(utterance.num_frames, self.rules.max_frames)
                if not stride or part.index % stride:
                    utterance.num_thinned += len(part.frames)
                    continue
                utterance.num_frames += len(part.frames)
            utterance.pieces.append(part)

    def _leave(self, at_sample: int) -> None:
        """Nothing is open any more, and what came before `at_sample` belongs to nobody else."""
        self.utterance = None
        self._chunker = Chunker()
        self._free_from = at_sample
        self._trim(at_sample)
        self.camera.forget_before(at_sample)

    def _trim(self, from_sample: int) -> None:
        num_samples = min(
            max(0, from_sample - self._kept_from), self.clock_sample - self._kept_from
        )
        del self._kept[: num_samples * SAMPLE_BYTES]
        self._kept_from += num_samples

    def _tell_detector(self) -> None:
        if self._vad is not None:
            self.to_hear.append(self.clock_sample - self._offset)


def _thinned(frames: tuple[VideoFrame, ...], max_frames: int) -> list[VideoFrame]:
    num = min(len(frames), max_frames)
    return [frames[i * len(frames) // num] for i in range(num)]
