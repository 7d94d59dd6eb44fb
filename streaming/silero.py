"""The Silero speech model, and the one thread that runs it for all sessions.

    event loop ──push──▶ listener of each session ──one window each──▶ batch ≤ 64 ──▶ model
               ◀──────────────── deliver(session_id, progress) ◀───── answers ◀────────┘

The thread takes what is there and runs it; while it runs, more arrives. So batches are small when there is time and
large when there is not; with many sessions it waits some milliseconds for a larger one. A session has at most one
window in a batch: a long upload delays no one.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from streaming.errors import ParleyError
from streaming.vad import (
    CONTEXT_SAMPLES,
    STATE_SIZE,
    WINDOW_SAMPLES,
    Floats,
    SpeechEvent,
    SpeechListener,
    VadSettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

MODEL_FILE = "data/silero_vad_16k_op15.onnx"
MAX_BATCH = 64
GATHER_S = 0.01
GATHER_FROM = 16
"""With so many sessions the thread waits a moment for others to join a batch; alone a window costs twice as much."""
MAX_UNTOLD_SAMPLES = 8_000
"""A session that is behind is told of its progress after so much, or of an event; else only once it has caught up."""
_SAMPLE_RATE = np.array(16_000, np.int64)


class SpeechModelError(ParleyError):
    """The speech model is missing or not the one we know."""


def model_path() -> Path:
    """Return where the `silero-vad` package keeps the model; the package itself is not imported, as it needs torch.

    Raises:
        SpeechModelError: the package is not installed.
    """
    package = importlib.util.find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise SpeechModelError("silero-vad is missing: pip install --no-deps silero-vad")
    return Path(package.submodule_search_locations[0]) / MODEL_FILE


class SpeechModel:
    """Windows to speech probabilities. Batched equals alone, bit for bit.

    Raises:
        SpeechModelError: the file is missing, or its inputs are not what we feed.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not path.is_file():
            raise SpeechModelError(f"no speech model at {path}: pip install --no-deps silero-vad")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        inputs = {i.name: i.shape for i in self._session.get_inputs()}
        # Another export of the same model has its state fixed to one session.
        if set(inputs) != {"input", "state", "sr"} or isinstance(inputs["state"][1], int):
            raise SpeechModelError(f"{path} does not take batches: its inputs are {inputs}")

    def __call__(self, windows: Floats, states: Floats) -> tuple[npt.NDArray[np.float32], Floats]:
        """Windows [B, 576], states [2, B, 128] to probabilities [B], new states."""
        assert windows.shape[1:] == (CONTEXT_SAMPLES + WINDOW_SAMPLES,)
        assert states.shape == (2, len(windows), STATE_SIZE)
        feed = {"input": windows, "state": states, "sr": _SAMPLE_RATE}
        probabilities, new_states = self._session.run(None, feed)
        return probabilities[:, 0], new_states


def hear(listeners: Iterable[SpeechListener], model: SpeechModel) -> bool:
    """Run one window of each listener that has one; True if there was any."""
    heard = False
    batch: list[tuple[SpeechListener, Floats]] = []
    for listener in listeners:
        window = listener.next_window()
        if window is None:
            continue
        heard = True
        batch.append((listener, window))
        if len(batch) == MAX_BATCH:
            _run(batch, model)
            batch = []
    if batch:
        _run(batch, model)
    return heard


def _run(batch: list[tuple[SpeechListener, Floats]], model: SpeechModel) -> None:
    windows = np.stack([window for _, window in batch])
    states = np.stack([listener.state for listener, _ in batch], axis=1)
    probabilities, states = model(windows, states)
    for i, (listener, _) in enumerate(batch):
        listener.receive(float(probabilities[i]), states[:, i])


@dataclass(frozen=True, slots=True)
class SpeechProgress:
    """What is known about a session's input now."""

    until_sample: int
    """Everything before has been judged; a turn's sound may be sent up to here and no further."""
    events: tuple[SpeechEvent, ...]


class SpeechThread:
    """Runs the model for many sessions. All methods may be called from any thread and return at once.

    Args:
        deliver: called in the helper thread whenever a session's progress grew. Must not block or raise; an event loop
            passes `call_soon_threadsafe`.
    """

    def __init__(self, model: SpeechModel, deliver: Callable[[str, SpeechProgress], None]) -> None:
        self._model = model
        self._deliver = deliver
        self._changed = threading.Condition()
        self._listeners: dict[str, SpeechListener] = {}
        self._arrived: dict[str, list[bytes | VadSettings | int]] = {}
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="speech", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what has not been judged stays so."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def open(self, session_id: str, settings: VadSettings, start_sample: int = 0) -> None:
        """Begin to listen to a session, whose next sample is `start_sample`."""
        with self._changed:
            assert session_id not in self._listeners, "the session is listened to already"
            self._listeners[session_id] = SpeechListener(settings, start_sample)

    def close(self, session_id: str) -> None:
        """Stop listening; nothing is delivered for the session once the batch in flight is done."""
        with self._changed:
            self._listeners.pop(session_id, None)
            self._arrived.pop(session_id, None)

    def push(self, session_id: str, pcm: bytes) -> None:
        """Give a session's samples; the gateway's limit on unhandled input bounds what may wait here."""
        self._arrive(session_id, pcm)

    def configure(self, session_id: str, settings: VadSettings) -> None:
        """Change the settings from the next decision on."""
        self._arrive(session_id, settings)

    def end_turn(self, session_id: str, at_sample: int) -> None:
        """Somebody else ended the turn: speech from there on is a new one."""
        self._arrive(session_id, at_sample)

    def _arrive(self, session_id: str, what: bytes | VadSettings | int) -> None:
        with self._changed:
            if session_id in self._listeners:
                self._arrived.setdefault(session_id, []).append(what)
                self._changed.notify()

    def _work(self) -> None:
        behind: set[str] = set()  # sessions with more than one window waiting
        told: dict[str, int] = {}  # how far those know they have been judged
        while True:
            with self._changed:
                while not (self._arrived or behind or self._is_stopping):
                    self._changed.wait()
                must_gather = not behind and len(self._listeners) >= GATHER_FROM
            if must_gather:
                time.sleep(GATHER_S)
            with self._changed:
                if self._is_stopping:
                    return
                arrived, self._arrived = self._arrived, {}
                ids = [*behind, *(i for i in arrived if i not in behind)]
                busy = {i: self._listeners[i] for i in ids if i in self._listeners}
            for session_id, items in arrived.items():
                if session_id in busy:
                    _give(busy[session_id], items)
            before = {i: told.get(i, listener.until_sample) for i, listener in busy.items()}
            hear(busy.values(), self._model)
            behind = {i for i, x in busy.items() if x.num_samples_waiting >= WINDOW_SAMPLES}
            told = {i: before[i] for i in behind}
            for session_id, listener in busy.items():
                until, events = listener.until_sample, tuple(listener.take_events())
                untold = until - before[session_id]
                if untold <= 0 or (
                    session_id in behind and not events and untold < MAX_UNTOLD_SAMPLES
                ):
                    continue
                self._deliver(session_id, SpeechProgress(until, events))
                if session_id in behind:
                    told[session_id] = until


def _give(listener: SpeechListener, items: list[bytes | VadSettings | int]) -> None:
    for item in items:
        if isinstance(item, bytes):
            listener.push(item)
        elif isinstance(item, int):
            listener.detector.stop(item)
        else:
            listener.detector.settings = item
