"""The real model on real (synthesised) speech, alone, batched and in its thread."""

from __future__ import annotations

import queue
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from streaming import silero
from streaming.pcm import read_wav, silence
from streaming.silero import (
    MAX_BATCH,
    SpeechModel,
    SpeechModelError,
    SpeechProgress,
    SpeechThread,
    hear,
    model_path,
)
from streaming.vad import (
    STATE_SIZE,
    SpeechEvent,
    SpeechListener,
    SpeechStarted,
    SpeechStopped,
    VadSettings,
)

SECOND = 16_000
WINDOW = 512
SPEECH, RATE = read_wav((Path(__file__).parent / "one_two_three.wav").read_bytes())
"""'One two three four five', espeak-ng; the voice is heard from sample 0 to 22 880 of 28 784."""
FIRST_SAMPLE, LAST_SAMPLE = 0, 22_880
LIMIT_S = 10.0


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return SpeechModel(model_path())


def events_of(pcm: bytes, model: SpeechModel, *, use_gate: bool = True) -> list[SpeechEvent]:
    listener = SpeechListener(VadSettings(), use_gate=use_gate)
    listener.push(pcm)
    while hear([listener], model):
        pass
    return listener.take_events()


def with_noise(pcm: bytes, rms: float) -> bytes:
    noise = np.random.default_rng(1).standard_normal(len(pcm) // 2) * rms
    return np.clip(np.frombuffer(pcm, "<i2") + noise, -32768, 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("noise_rms", [0, 30, 300])  # silence, −61 and −41 dBFS; speech is at −15
@pytest.mark.parametrize("use_gate", [True, False])
def test_speech_is_found_where_it_is(model: SpeechModel, noise_rms: float, use_gate: bool) -> None:
    pcm = with_noise(silence(SECOND) + SPEECH + silence(2 * SECOND), noise_rms)
    started, stopped = events_of(pcm, model, use_gate=use_gate)
    assert isinstance(started, SpeechStarted) and isinstance(stopped, SpeechStopped)
    # Two windows: windows are not aligned with the speech, and quiet ends of words may fall short of the threshold.
    assert abs(started.at_sample + 4800 - (SECOND + FIRST_SAMPLE)) <= 2 * WINDOW
    assert started.decided_sample - (SECOND + FIRST_SAMPLE) <= 5 * WINDOW
    assert abs(stopped.speech_end_sample - (SECOND + LAST_SAMPLE)) <= 5 * WINDOW
    assert 0 <= stopped.at_sample - stopped.speech_end_sample - SECOND // 2 < WINDOW


def test_each_of_several_utterances_is_found(model: SpeechModel) -> None:
    pcm = b"".join((silence(SECOND) + SPEECH) for _ in range(3)) + silence(SECOND)
    events = events_of(pcm, model)
    assert [type(event) for event in events] == [SpeechStarted, SpeechStopped] * 3


t = np.arange(4 * SECOND) / SECOND
NO_SPEECH: dict[str, npt.NDArray[np.float64]] = {
    "silence": np.zeros(4 * SECOND),
    "hiss": np.random.default_rng(2).standard_normal(4 * SECOND) * 3000,
    "tone": 8000 * np.sin(2 * np.pi * 440 * t),
    "chord that beats": sum(
        (3000 * np.sin(2 * np.pi * f * t) * (1 + np.sin(4 * np.pi * t)) for f in (220, 277, 330)),
        np.zeros(4 * SECOND),
    ),
    "clicks": np.where(np.arange(4 * SECOND) % 8000 < 20, 20_000.0, 0.0),
    "full scale square": np.where(np.sin(2 * np.pi * 100 * t) > 0, 32767.0, -32768.0),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech_is_not_taken_for_it(model: SpeechModel, name: str) -> None:
    assert events_of(NO_SPEECH[name].astype("<i2").tobytes(), model, use_gate=False) == []


@pytest.mark.parametrize("batch", [2, 7, MAX_BATCH])
def test_batched_equals_alone_bit_for_bit(model: SpeechModel, batch: int) -> None:
    rng = np.random.default_rng(batch)
    windows = (rng.standard_normal((batch, 576)) * 0.1).astype(np.float32)
    states = (rng.standard_normal((2, batch, STATE_SIZE)) * 0.3).astype(np.float32)
    probabilities, new_states = model(windows, states)
    for i in range(batch):
        alone, state = model(windows[i : i + 1], states[:, i : i + 1])
        assert alone[0] == probabilities[i]
        assert np.array_equal(state[:, 0], new_states[:, i])


def test_many_sessions_hear_what_each_hears_alone(model: SpeechModel) -> None:
    """More than one batch, each with its own start of speech."""
    inputs = [silence(n * 300) + SPEECH + silence(SECOND) for n in range(MAX_BATCH + 3)]
    listeners = [SpeechListener(VadSettings()) for _ in inputs]
    for listener, pcm in zip(listeners, inputs, strict=True):
        listener.push(pcm)
    while hear(listeners, model):
        pass
    for n in (0, 1, 40, MAX_BATCH, MAX_BATCH + 2):
        assert listeners[n].take_events() == events_of(inputs[n], model), n


class Delivered:
    """Progress per session, in order of delivery."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, SpeechProgress]] = queue.Queue()

    def __call__(self, session_id: str, progress: SpeechProgress) -> None:
        self.told.put((session_id, progress))

    def until(self, goals: dict[str, int]) -> dict[str, list[SpeechEvent]]:
        """Wait until every session has been judged so far; return its events."""
        events: dict[str, list[SpeechEvent]] = {session_id: [] for session_id in goals}
        reached = dict.fromkeys(goals, 0)
        while any(reached[i] < goal for i, goal in goals.items()):
            session_id, progress = self.told.get(timeout=LIMIT_S)
            assert progress.until_sample > reached[session_id]
            reached[session_id] = progress.until_sample
            events[session_id] += progress.events
        return events


def test_the_thread_hears_what_one_listener_hears(model: SpeechModel) -> None:
    delivered = Delivered()
    thread = SpeechThread(model, delivered)
    thread.start()
    inputs = {f"session {n}": silence(n * 100) + SPEECH + silence(SECOND) for n in range(5)}
    for session_id in inputs:
        thread.open(session_id, VadSettings())
    for at in range(0, max(map(len, inputs.values())), 1999):
        for session_id, pcm in inputs.items():
            thread.push(session_id, pcm[at : at + 1999])
    goals = {i: len(pcm) // 2 // WINDOW * WINDOW for i, pcm in inputs.items()}
    events = delivered.until(goals)
    thread.stop()
    assert events == {i: events_of(pcm, model) for i, pcm in inputs.items()}


def test_a_closed_session_is_heard_no_more_and_its_id_is_free(model: SpeechModel) -> None:
    delivered = Delivered()
    thread = SpeechThread(model, delivered)
    thread.start()
    thread.push("nobody", SPEECH)
    thread.open("a", VadSettings())
    thread.push("a", SPEECH[: 2 * WINDOW])
    delivered.until({"a": WINDOW})
    thread.close("a")
    thread.push("a", SPEECH)
    thread.close("a")
    thread.open("a", VadSettings(), start_sample=777)
    thread.push("a", SPEECH[: 4 * WINDOW])
    session_id, progress = delivered.told.get(timeout=LIMIT_S)
    assert (session_id, progress.until_sample) == ("a", 777 + 2 * WINDOW)  # once for both windows
    thread.stop()


def test_settings_and_ended_turns_reach_the_listener(model: SpeechModel) -> None:
    """Before the thread starts everything waits in order, so this is exact."""
    delivered = Delivered()
    thread = SpeechThread(model, delivered)
    thread.open("a", VadSettings())
    thread.configure("a", VadSettings(prefix_padding_ms=0))
    thread.end_turn("a", 3 * WINDOW)
    thread.push("a", SPEECH)
    thread.start()
    [started] = delivered.until({"a": len(SPEECH) // 2 // WINDOW * WINDOW})["a"]
    thread.stop()
    assert started.at_sample == 3 * WINDOW


def test_a_missing_or_other_model_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpeechModelError, match="pip install"):
        SpeechModel(tmp_path / "nothing.onnx")
    with pytest.raises(SpeechModelError, match="does not take batches"):
        SpeechModel(model_path().with_name("silero_vad_openvino_16k.onnx"))
    monkeypatch.setattr(silero.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SpeechModelError, match="pip install"):
        model_path()


def test_nothing_here_brings_torch_along() -> None:
    code = (
        "import sys, streaming.silero as s; s.SpeechModel(s.model_path()); "
        "import streaming.chunker, streaming.pcm, streaming.transport, streaming.turn; "
        "assert 'torch' not in sys.modules and 'silero_vad' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
