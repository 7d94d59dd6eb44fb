"""The detector as a table of transcripts, and the listener's windows and gate with a scripted model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.vad import (
    CONTEXT_SAMPLES,
    QUIET_WINDOWS,
    STATE_SIZE,
    WINDOW_SAMPLES,
    Floats,
    SpeechDetector,
    SpeechEvent,
    SpeechListener,
    SpeechStarted,
    SpeechStopped,
    VadSettings,
)

W = WINDOW_SAMPLES
QUICK = VadSettings(prefix_padding_ms=0, silence_duration_ms=96, min_speech_ms=64)
"""Two windows of speech, three of silence."""
STATE: Floats = np.zeros((2, STATE_SIZE), np.float32)

SCORES = {".": 0.0, "-": 0.4, "#": 0.9}
"""Silence, between the thresholds, speech."""


def transcript(windows: str, settings: VadSettings = QUICK, start: int = 0) -> list[SpeechEvent]:
    detector = SpeechDetector(settings, start)
    events = [detector.receive(start + n * W, SCORES[w]) for n, w in enumerate(windows)]
    return [event for event in events if event is not None]


@pytest.mark.parametrize(
    ("windows", "events"),
    [
        ("......", []),
        ("..#...", []),  # a click
        ("..--..", []),  # never above the threshold
        (".##.", [SpeechStarted(W, 3 * W, 0.9)]),
        (".#-.", [SpeechStarted(W, 3 * W, 0.9)]),  # the second need only not be silent
        (".#.##", [SpeechStarted(3 * W, 5 * W, 0.9)]),
        ("##...", [SpeechStarted(0, 2 * W, 0.9), SpeechStopped(5 * W, 2 * W)]),
        ("##..#...", [SpeechStarted(0, 2 * W, 0.9), SpeechStopped(8 * W, 5 * W)]),
        ("##..-", [SpeechStarted(0, 2 * W, 0.9), SpeechStopped(5 * W, 2 * W)]),
        ("##---.", [SpeechStarted(0, 2 * W, 0.9)]),  # between the two nothing begins
        (
            "##...##...",
            [
                SpeechStarted(0, 2 * W, 0.9),
                SpeechStopped(5 * W, 2 * W),
                SpeechStarted(5 * W, 7 * W, 0.9),
                SpeechStopped(10 * W, 7 * W),
            ],
        ),
    ],
)
def test_transcripts(windows: str, events: list[SpeechEvent]) -> None:
    assert transcript(windows) == events


def test_the_padding_reaches_back_but_not_into_what_ended_before() -> None:
    settings = VadSettings(prefix_padding_ms=96, silence_duration_ms=64, min_speech_ms=32)
    starts = [
        e.at_sample for e in transcript("....#..#..", settings) if isinstance(e, SpeechStarted)
    ]
    assert starts == [1 * W, 7 * W]
    assert transcript(".#", settings, start=100)[0].at_sample == 100


def test_odd_durations_wait_for_the_window_that_completes_them() -> None:
    settings = VadSettings(prefix_padding_ms=10, silence_duration_ms=100, min_speech_ms=33)
    started, stopped = transcript("..##....", settings)
    assert started == SpeechStarted(2 * W - 160, 4 * W, 0.9)
    assert stopped == SpeechStopped(8 * W, 4 * W)


def test_a_silence_in_speech_is_visible_before_it_ends_the_turn() -> None:
    detector = SpeechDetector(QUICK)
    seen = []
    for n, window in enumerate(".##.#..."):
        detector.receive(n * W, SCORES[window])
        seen.append(detector.silent_since)
    assert seen == [None, None, None, 3 * W, None, 5 * W, 5 * W, None]


def test_a_turn_ended_by_hand_begins_anew_from_there() -> None:
    detector = SpeechDetector(VadSettings(prefix_padding_ms=320, min_speech_ms=32))
    assert detector.receive(0, 0.9) == SpeechStarted(0, W, 0.9)
    detector.stop(3 * W)
    assert not detector.is_active
    assert detector.receive(2 * W, 0.9) is None  # heard before, judged after
    assert detector.receive(3 * W, 0.9) == SpeechStarted(3 * W, 4 * W, 0.9)


@given(st.text("#-.", max_size=60), st.integers(0, 5000))
def test_events_alternate_and_never_overlap(windows: str, start: int) -> None:
    position = start
    for n, event in enumerate(transcript(windows, start=start)):
        assert isinstance(event, SpeechStopped if n % 2 else SpeechStarted)
        assert event.at_sample >= position
        position = event.at_sample


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 1.2}, {"min_speech_ms": -1}])
def test_settings_out_of_range_are_our_own_fault(bad: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        VadSettings(**bad)  # type: ignore[arg-type]


# ---- the listener


def loudness(window: Floats) -> float:
    """In the model's place: loud is speech."""
    return float(np.abs(window[CONTEXT_SAMPLES:]).max() > 0.1)


def listen(pieces: list[bytes], listener: SpeechListener) -> list[Floats]:
    """Return the windows that the model heard."""
    heard = []
    for piece in pieces:
        listener.push(piece)
        while (window := listener.next_window()) is not None:
            heard.append(window)
            listener.receive(loudness(window), STATE)
    return heard


def signal(levels: list[int]) -> bytes:
    """A window of noise per level."""
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(W) * level for level in levels]
    return np.concatenate([np.zeros(0), *noise]).clip(-32768, 32767).astype("<i2").tobytes()


@given(
    st.lists(st.sampled_from([0, 10, 300, 9000]), max_size=40),
    st.lists(st.integers(0, 40_000), max_size=10),
)
def test_any_slicing_gives_the_same_events(levels: list[int], cuts: list[int]) -> None:
    pcm = signal(levels)
    edges = [0, *sorted(min(cut, len(pcm)) for cut in cuts), len(pcm)]
    pieces = [pcm[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    whole, sliced = SpeechListener(QUICK), SpeechListener(QUICK)
    heard, heard_sliced = listen([pcm], whole), listen(pieces, sliced)
    assert whole.take_events() == sliced.take_events()
    assert len(heard) == len(heard_sliced)
    assert all(map(np.array_equal, heard, heard_sliced))
    assert whole.until_sample == sliced.until_sample == len(levels) * W


def test_every_window_carries_the_end_of_the_one_before() -> None:
    pcm = signal([9000] * 5)
    heard = listen([pcm], SpeechListener(QUICK))
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)
    assert not heard[0][:CONTEXT_SAMPLES].any()
    for n, window in enumerate(heard[1:], start=1):
        assert np.array_equal(window, samples[n * W - CONTEXT_SAMPLES : (n + 1) * W])


@pytest.mark.parametrize("level", [0, 20, 300])
def test_steady_quiet_needs_no_model_calls_after_a_while(level: int) -> None:
    listener = SpeechListener(VadSettings())
    num_heard = len(listen([signal([level] * 400)], listener))
    assert listener.num_gated == 400 - num_heard
    # −40 dBFS: the floor climbs 20 dB from where it starts at 2.7 dB a second before the gate closes.
    assert num_heard <= (QUIET_WINDOWS if level < 30 else 260)


def test_the_gate_opens_with_the_first_window_of_speech() -> None:
    listener = SpeechListener(QUICK)
    levels = [0] * 50 + [9000] * 3 + [0] * 20
    assert len(listen([signal(levels)], listener)) >= QUIET_WINDOWS + 3 + QUIET_WINDOWS
    assert listener.take_events() == [
        SpeechStarted(50 * W, 52 * W, 1.0),
        SpeechStopped(56 * W, 53 * W),
    ]
    assert listener.take_events() == []


@given(st.lists(st.tuples(st.sampled_from([0, 300, 9000]), st.integers(1, 30)), max_size=6))
def test_the_gate_changes_no_event(runs: list[tuple[int, int]]) -> None:
    pcm = signal([level for level, n in runs for _ in range(n)])
    gated, open_ = SpeechListener(QUICK), SpeechListener(QUICK, use_gate=False)
    listen([pcm], gated)
    listen([pcm], open_)
    assert gated.take_events() == open_.take_events()
    assert open_.num_gated == 0
