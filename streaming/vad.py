"""SpeechDetector: when speech started and stopped, from one probability per 32 ms window.

    probability   ▁▁▂▇█▇▅▇█▇▂▁▁▁▁▁▁▁▁▁▁▁▁
    started          ├┤ confirmed after `min_speech_ms`, dated back to its first window and by the prefix padding
    stopped                   └─────────┤ `silence_duration_ms` after the last window that was not silent

A window is speech from `threshold` on, silence below `threshold − HYSTERESIS`; between the two it changes nothing.

`SpeechListener` stands before the detector: it cuts samples into windows and decides which of them the model need not
hear. Both are pure; `streaming/silero.py` has the model and the thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streaming.media import SAMPLE_BYTES, input_samples
from streaming.pcm import to_float

Floats = npt.NDArray[np.float32]

WINDOW_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""What the model hears of the samples before a window."""
STATE_SIZE = 128
HYSTERESIS = 0.15

QUIETEST_POWER = 10.0 ** (-60 / 10)
"""Of full scale: −60 dBFS. The noise floor is never taken to be lower."""
GATE_RATIO = 2.0
"""A window of less than twice the power of the noise floor (3 dB) is quiet."""
FLOOR_RISE = 1.02
"""Per window: 2.7 dB a second. A floor that is too low costs time, one that is too high costs words."""
QUIET_WINDOWS = 10
"""The gate closes only after so many quiet windows, so the model hears every pause of speech to its end."""


@dataclass(frozen=True, slots=True)
class VadSettings:
    """How a session detects speech; the defaults are the public protocol's."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    min_speech_ms: int = 64
    """Shorter bursts (clicks, a door) are no speech."""

    def __post_init__(self) -> None:
        assert HYSTERESIS < self.threshold + HYSTERESIS <= 1.1, "the gateway clamps to 0.05 … 0.95"
        assert min(self.prefix_padding_ms, self.silence_duration_ms, self.min_speech_ms) >= 0


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech began."""

    at_sample: int
    """Where the turn's sound begins: the first speech window less the padding, not before what ended earlier."""
    decided_sample: int
    """Input that had to arrive until this was certain."""
    probability: float
    """Highest so far."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Speech ended."""

    at_sample: int
    """Where the turn's sound ends: the silence included, nothing beyond was looked at."""
    speech_end_sample: int
    """Where the silence began."""


SpeechEvent = SpeechStarted | SpeechStopped


class SpeechDetector:
    """One session's detector: probabilities in, events out."""

    def __init__(self, settings: VadSettings, start_sample: int = 0) -> None:
        self.settings = settings
        self._free_from = start_sample  # a turn may not reach back beyond the end of the one before
        self._first_sample: int | None = None  # of the speech, or of what may become it
        self._highest = 0.0
        self._is_speech = False
        self._silent_since: int | None = None

    @property
    def is_active(self) -> bool:
        """Speech goes on, or may have just begun: every window counts."""
        return self._first_sample is not None

    @property
    def silent_since(self) -> int | None:
        """Within speech: where a silence began that may become its end."""
        return self._silent_since if self._is_speech else None

    def receive(self, start_sample: int, probability: float) -> SpeechEvent | None:
        """Take the next window, which starts at `start_sample`."""
        end_sample = start_sample + WINDOW_SAMPLES
        if self._is_speech:
            return self._receive_in_speech(start_sample, end_sample, probability)
        return self._receive_in_silence(start_sample, end_sample, probability)

    def stop(self, at_sample: int) -> None:
        """The turn was ended by somebody else (a manual commit, a clear): wait for new speech from there on."""
        self._first_sample = self._silent_since = None
        self._is_speech = False
        self._free_from = at_sample

    def _receive_in_silence(self, start: int, end: int, probability: float) -> SpeechEvent | None:
        if self._first_sample is None:
            # Before `_free_from`: heard before somebody else ended the turn there, judged after.
            if probability < self.settings.threshold or start < self._free_from:
                return None
            self._first_sample, self._highest = start, 0.0
        elif probability < self.settings.threshold - HYSTERESIS:
            self._first_sample = None
            return None
        self._highest = max(self._highest, probability)
        if end - self._first_sample < input_samples(self.settings.min_speech_ms):
            return None
        self._is_speech = True
        padded = self._first_sample - input_samples(self.settings.prefix_padding_ms)
        return SpeechStarted(max(padded, self._free_from), end, self._highest)

    def _receive_in_speech(self, start: int, end: int, probability: float) -> SpeechEvent | None:
        if probability >= self.settings.threshold:
            self._silent_since = None
        elif self._silent_since is None and probability < self.settings.threshold - HYSTERESIS:
            self._silent_since = start
        if self._silent_since is None:
            return None
        if end - self._silent_since < input_samples(self.settings.silence_duration_ms):
            return None
        stopped = SpeechStopped(end, self._silent_since)
        self.stop(end)
        return stopped


class SpeechListener:
    """Samples of one session to the windows that the model must hear, and its answers to events.

    `push`, then `next_window` until it is None, answering each window with `receive`; then `take_events`.
    A window under the noise floor while no speech is active is silence without asking. The model's state then stands
    still: it last heard the same silence. Any slicing of the input gives the same events.
    """

    def __init__(
        self, settings: VadSettings, start_sample: int = 0, *, use_gate: bool = True
    ) -> None:
        self.detector = SpeechDetector(settings, start_sample)
        self.state: Floats = np.zeros((2, STATE_SIZE), np.float32)
        """The model's; replaced by `receive`."""
        self.until_sample = start_sample
        """Everything before has been judged."""
        self.num_windows = 0
        self.num_gated = 0
        self._pcm = bytearray()
        self._context: Floats = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._events: list[SpeechEvent] = []
        self._floor_power = QUIETEST_POWER
        self._num_quiet = 0
        self._use_gate = use_gate

    @property
    def num_samples_waiting(self) -> int:
        return len(self._pcm) // SAMPLE_BYTES

    def push(self, pcm: bytes) -> None:
        """Take int16 samples at 16 kHz; half a sample waits for its other half."""
        self._pcm += pcm

    def next_window(self) -> Floats | None:
        """Return what the model must hear next, context and window [576]; None if more input is needed."""
        while len(self._pcm) >= WINDOW_SAMPLES * SAMPLE_BYTES:
            samples = to_float(bytes(self._pcm[: WINDOW_SAMPLES * SAMPLE_BYTES]))
            del self._pcm[: WINDOW_SAMPLES * SAMPLE_BYTES]
            window = np.concatenate((self._context, samples))
            self._context = samples[-CONTEXT_SAMPLES:]
            self.num_windows += 1
            if not self._is_gated(samples):
                return window
            self.num_gated += 1
            self._judge(0.0)
        return None

    def receive(self, probability: float, state: Floats) -> None:
        """Take the model's answer to the last window: the probability and its new state [2, 128]."""
        self.state = state
        self._judge(probability)

    def take_events(self) -> list[SpeechEvent]:
        """Return and forget what happened since the last call."""
        events, self._events = self._events, []
        return events

    def _judge(self, probability: float) -> None:
        event = self.detector.receive(self.until_sample, probability)
        self.until_sample += WINDOW_SAMPLES
        if event is not None:
            self._events.append(event)

    def _is_gated(self, samples: Floats) -> bool:
        if self.detector.is_active:
            self._num_quiet = 0
            return False
        power = float(np.dot(samples, samples)) / WINDOW_SAMPLES
        self._floor_power = max(QUIETEST_POWER, min(power, self._floor_power * FLOOR_RISE))
        is_quiet = power < self._floor_power * GATE_RATIO
        self._num_quiet = self._num_quiet + 1 if is_quiet else 0
        return self._use_gate and self._num_quiet > QUIET_WINDOWS
