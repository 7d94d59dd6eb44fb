"""A call as a transcript: server events at scripted times in, figures and answers out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.dialogue import Dialogue, Utterance, record, speed

RATE = 24_000
SPOKEN = Utterance("hello", 10.0, 12.0)
LOUD = b"\x00\x40" * (RATE // 10)  # 100 ms
Answers = list[dict[str, Any]]


class Script:
    """Events in few words."""

    def __init__(self, *, beta: bool = False) -> None:
        self.dialogue = Dialogue(prebuffer_s=0.0)
        self.beta = beta

    def at(self, now_s: float, what: str, response: str = "r1", **fields: Any) -> Answers:
        event: dict[str, Any]
        pcm = b""
        match what:
            case "started" | "stopped":
                event = {"type": f"input_audio_buffer.speech_{what}"}
            case "created" | "done":
                about = {"id": response, "status": "completed"} | fields
                event = {"type": f"response.{what}", "response": about}
            case "item":
                kind = "response.output_item.added"
                event = {"type": kind, "response_id": response, "item": {"id": f"item_{response}"}}
            case "text":
                name = "audio_transcript" if self.beta else "output_audio_transcript"
                event = {"type": f"response.{name}.delta", "response_id": response, "delta": "Hi"}
            case "sound":
                name = "audio" if self.beta else "output_audio"
                event = {"type": f"response.{name}.delta", "response_id": response}
                pcm = LOUD
            case _:
                raise AssertionError(what)
        return self.dialogue.receive(now_s, event, pcm)

    def answer(self, now_s: float, response: str = "r1") -> None:
        """A whole reply of 200 ms, 100 ms of time apart."""
        self.at(now_s, "created", response)
        self.at(now_s, "item", response)
        self.at(now_s + 0.1, "text", response)
        self.at(now_s + 0.2, "sound", response)
        self.at(now_s + 0.25, "sound", response)
        self.at(now_s + 0.3, "done", response)


@pytest.mark.parametrize("beta", [False, True])
def test_every_stage_counts_from_the_end_of_speech(beta: bool) -> None:
    script = Script(beta=beta)
    turn = script.dialogue.begin_turn(SPOKEN)
    script.at(10.2, "started")
    script.at(12.5, "stopped")
    script.answer(12.6)
    assert not script.dialogue.is_answered(12.95)
    assert script.dialogue.is_answered(13.01)
    made = record(turn, rate=RATE)
    assert not made.is_failed
    stages = (
        made.decided_ms,
        made.response_ms,
        made.first_text_ms,
        made.first_audio_ms,
        made.audible_ms,
        made.done_ms,
    )
    assert stages == (500, 600, 700, 800, 800, 900)
    assert (made.audio_s, made.text, made.underruns_ms) == (0.2, "Hi", [])
    assert [p.at_ms for p in made.packets] == [800, 850]


def test_a_pause_taken_for_the_end_is_counted_and_the_last_reply_is_the_answer() -> None:
    script = Script()
    turn = script.dialogue.begin_turn(SPOKEN)
    script.at(10.2, "started")
    script.at(11.2, "stopped")
    script.at(11.2, "created", "r1")
    script.at(11.2, "item", "r1")
    script.at(11.4, "sound", "r1")
    answers = script.at(11.45, "started")
    assert answers == [
        {
            "type": "conversation.item.truncate",
            "item_id": "item_r1",
            "content_index": 0,
            "audio_end_ms": 50,
        }
    ]
    script.at(11.5, "done", "r1", status="cancelled")
    script.at(12.5, "stopped")
    assert not script.dialogue.is_answered(12.55)
    script.answer(12.6, "r2")
    assert script.dialogue.is_answered(14)
    made = record(turn, rate=RATE)
    assert (made.num_early_decisions, made.first_audio_ms, made.is_failed) == (1, 800, False)
    assert made.interrupted_by == ""


def test_an_interruption_is_measured_from_the_first_word_to_the_silent_ear() -> None:
    script = Script()
    first = script.dialogue.begin_turn(SPOKEN)
    script.at(12.5, "stopped")
    script.at(12.5, "created")
    script.at(12.5, "item")
    for _ in range(20):
        script.at(12.6, "sound")
    script.dialogue.begin_turn(Utterance("stop", 13.0, 14.0))
    answers = script.at(13.25, "started")
    assert answers[0]["audio_end_ms"] == 650
    script.at(13.26, "sound")  # on its way when the server heard
    script.at(13.3, "done", status="cancelled", status_details={"reason": "turn_detected"})
    made = record(first, rate=RATE)
    assert made.interrupted_by == "voice" and not made.is_failed
    assert (made.silence_ms, made.cancelled_ms, made.heard_s) == (250, 50, 0.65)
    assert made.num_stale_packets == 1
    assert script.dialogue.turn.reply is None


def test_who_presses_stop_hears_nothing_at_once_and_the_server_is_told() -> None:
    script = Script()
    turn = script.dialogue.begin_turn(SPOKEN)
    script.at(12.5, "stopped")
    script.at(12.5, "created")
    script.at(12.5, "item")
    script.at(12.6, "sound")
    answers = script.dialogue.press_stop(12.65)
    assert [a["type"] for a in answers] == ["response.cancel", "conversation.item.truncate"]
    assert not script.dialogue.is_answered(12.66)
    script.at(12.7, "done", status="cancelled")
    assert script.dialogue.is_answered(12.7)
    made = record(turn, rate=RATE)
    assert (made.silence_ms, made.cancelled_ms, made.interrupted_by) == (0, 50, "cancel")


def test_what_was_already_generated_is_silenced_too_without_a_cancel() -> None:
    script = Script()
    script.dialogue.begin_turn(SPOKEN)
    script.at(12.5, "stopped")
    script.answer(12.5)
    answers = script.dialogue.press_stop(12.81)
    assert [a["type"] for a in answers] == ["conversation.item.truncate"]


def test_holes_after_the_player_was_emptied_are_not_heard() -> None:
    script = Script()
    turn = script.dialogue.begin_turn(SPOKEN)
    script.at(12.5, "created")
    script.at(12.5, "item")
    script.at(12.5, "sound")
    script.at(12.7, "sound")
    script.dialogue.press_stop(12.75)
    script.at(13.5, "sound")
    script.at(13.6, "done", status="cancelled")
    assert record(turn, rate=RATE).underruns_ms == [100]


def test_no_reply_and_half_a_reply_are_failures() -> None:
    script = Script()
    turn = script.dialogue.begin_turn(SPOKEN)
    assert record(turn, rate=RATE).status == "no reply"
    script.at(12.5, "created")
    assert record(turn, rate=RATE).status == "timeout"
    script.at(12.6, "done", status="failed", status_details={"error": {"code": "server_error"}})
    made = record(turn, rate=RATE)
    assert (made.status, made.reason, made.is_failed) == ("failed", "server_error", True)


def test_errors_belong_to_the_turn_they_strike() -> None:
    script = Script()
    turn = script.dialogue.begin_turn(SPOKEN)
    error = {"type": "invalid_request_error", "code": "invalid_value", "message": "no"}
    script.dialogue.receive(11.0, {"type": "error", "error": error})
    assert record(turn, rate=RATE).errors == ["invalid_value: no"]


def test_events_of_strangers_change_nothing() -> None:
    script = Script()
    script.dialogue.begin_turn(SPOKEN)
    for event in (
        {"type": "rate_limits.updated"},
        {"type": "response.output_audio.delta", "response_id": "unknown", "delta": ""},
    ):
        assert script.dialogue.receive(11.0, event) == []


@given(st.floats(0.3, 20), st.integers(1, 30))
def test_speed_is_what_the_server_makes_until_it_may_hold_back(factor: float, count: int) -> None:
    period_s = 0.1 / factor
    arrivals = [((k + 1) * period_s, RATE // 10) for k in range(count)]
    assert speed(0.0, arrivals, RATE) == pytest.approx(factor, rel=1e-6)


def test_speed_does_not_count_what_was_held_back() -> None:
    fast = [((k + 1) * 0.05, RATE // 10) for k in range(22)]
    held = [(fast[-1][0] + 0.1 * k, RATE // 10) for k in range(1, 50)]
    assert speed(0.0, fast + held, RATE) == pytest.approx(2.0, rel=0.06)
    assert speed(0.0, [], RATE) is None


def test_what_comes_in_one_burst_was_made_as_a_whole() -> None:
    burst = [(2.0 + 0.001 * k, RATE // 5) for k in range(20)]  # 4 s of sound
    assert speed(0.0, burst, RATE) == pytest.approx(2.0, rel=0.02)
