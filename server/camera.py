"""Camera: the frames of a session on the input clock, from their arrival until an utterance takes them."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.media import INPUT_SAMPLE_RATE, VideoFrame

KEPT_SAMPLES = 30 * INPUT_SAMPLE_RATE
MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class FrameLosses:
    """Frames dropped since they were last reported, by the reason reported."""

    rate: int = 0
    memory: int = 0
    late: int = 0


@dataclass(frozen=True, slots=True)
class _Shot:
    frame: VideoFrame
    is_timed: bool = False


class Camera:
    """Recent frames, thinned to a rate; owned by the input buffer."""

    def __init__(self) -> None:
        self.losses = FrameLosses()
        self._shots: list[_Shot] = []  # by capture time
        self._num_bytes = 0
        self._num_fed = 0
        self._last_slot: int | None = None

    def __len__(self) -> int:
        return len(self._shots)

    @property
    def frames(self) -> tuple[VideoFrame, ...]:
        return tuple(shot.frame for shot in self._shots)

    def add(self, frame: VideoFrame, fps: float, *, is_timed: bool = False) -> None:
        """Take a frame; at most one per span of 1/fps is kept. `is_timed`: its time is the client's, not ours."""
        slot = int(frame.capture_sample * fps // INPUT_SAMPLE_RATE)
        if slot == self._last_slot:
            self.losses.rate += 1
            return
        self._last_slot = slot
        at = len(self._shots)
        while at and self._shots[at - 1].frame.capture_sample > frame.capture_sample:
            at -= 1
        if at < self._num_fed:
            self.losses.late += 1
            return
        self._shots.insert(at, _Shot(frame, is_timed))
        self._num_bytes += len(frame.jpeg)
        self._drop_old(self._shots[-1].frame.capture_sample - KEPT_SAMPLES)

    def take_until(self, sample: int) -> list[VideoFrame]:
        """Return the frames captured before `sample` that were not returned before; they stay kept."""
        later = self.frames[self._num_fed :]
        due = [frame for frame in later if frame.capture_sample < sample]
        self._num_fed += len(due)
        return due

    def rewind(self, sample: int) -> None:
        """An utterance begins: the next `take_until` starts with the first frame captured from `sample` on."""
        self._num_fed = sum(1 for frame in self.frames if frame.capture_sample < sample)

    def forget_before(self, sample: int) -> None:
        """The utterance is over: what it saw belongs to nobody else."""
        self._keep([s for s in self._shots if s.frame.capture_sample >= sample])

    def clear(self) -> None:
        self._keep([])

    def shift(self, num_samples: int) -> None:
        """The clock began anew: set back what was timed by the old one."""
        shots = [s if s.is_timed else _Shot(_earlier(s.frame, num_samples)) for s in self._shots]
        self._keep(sorted(shots, key=lambda shot: shot.frame.capture_sample))
        self._last_slot = None

    def _drop_old(self, oldest: int) -> None:
        num_old = sum(1 for frame in self.frames if frame.capture_sample < oldest)
        num_bytes = self._num_bytes - sum(len(s.frame.jpeg) for s in self._shots[:num_old])
        while num_bytes > MAX_BYTES and num_old < len(self._shots) - 1:
            num_bytes -= len(self._shots[num_old].frame.jpeg)
            num_old += 1
        if num_old:
            self.losses.memory += max(0, num_old - self._num_fed)
            num_fed = max(0, self._num_fed - num_old)
            self._keep(self._shots[num_old:])
            self._num_fed = num_fed

    def _keep(self, shots: list[_Shot]) -> None:
        self._shots = shots
        self._num_bytes = sum(len(shot.frame.jpeg) for shot in shots)
        self._num_fed = 0


def _earlier(frame: VideoFrame, num_samples: int) -> VideoFrame:
    return VideoFrame(frame.capture_sample - num_samples, frame.jpeg)


def frame_stride(num_frames: int, max_frames: int) -> int:
    """How many seconds apart the next frames of an utterance may be, so that it never has too many.

    Half of the frames come at full rate, a quarter at half of it, and so on: evenly enough, and nothing that has been
    told is taken back. 0: no more.
    """
    left = max_frames - num_frames
    if left <= 1:
        return 0
    stride = 1
    while left * 2 * stride < max_frames:
        stride *= 2
    return stride
