"""Transcriptions that wait, fail, and are overtaken."""

from __future__ import annotations

from server.events import InputAudioCommit, ItemDelete, ResponseCreate, SessionUpdate
from server.limits import Limits
from streaming.packets import CommitTurn, OpenSession
from tests.fakes import FakeWorker
from tests.server.driving import Call
from tests.server.test_session import MANUAL, TRANSCRIBE, sound


def committed(call: Call, num: int = 1) -> list[str]:
    call.send(MANUAL, TRANSCRIBE)
    return [event for _ in range(num) for event in call.send(sound(0.2), InputAudioCommit())]


def test_a_response_asked_for_at_once_comes_first() -> None:
    call = Call()
    committed(call)
    call.send(ResponseCreate())
    call.wait(1_000)
    assert [c.settings.system_prompt for c in call.sent if isinstance(c, OpenSession)] == [
        "Be kind."
    ]
    call.make_all()
    assert len([c for c in call.sent if isinstance(c, OpenSession)]) == 2


def test_without_a_response_it_begins_by_itself() -> None:
    call = Call()
    committed(call)
    assert call.worker.running() == []
    call.wait(200)
    assert len(call.worker.running()) == 1
    assert call.make_all()[-1] == "TranscriptionCompleted item_1 0 Good day. 0.2"


def test_they_are_made_one_after_the_other() -> None:
    call = Call()
    committed(call, 3)
    call.wait(200)
    done = [e for _ in range(3) for e in call.make_all() if "Completed" in e]
    assert [event.split()[1] for event in done] == ["item_1", "item_2", "item_3"]


def test_too_many_fail_the_oldest_that_waits() -> None:
    call = Call()
    call.send(MANUAL, TRANSCRIBE)
    events = committed(call, 9)
    failed = [event.split()[:4] for event in events if "Failed" in event]
    assert failed == [["TranscriptionFailed", "item_2", "0", "rate_limit_exceeded"]]


def test_a_failed_turn_or_session_fails_the_transcription_alone() -> None:
    call = Call()
    committed(call, 2)
    call.wait(200)
    [session_id] = call.worker.running()
    call.worker.fail_turn(session_id, "server_error")
    call.drain()
    [session_id] = call.worker.running()
    call.worker.fail(session_id)
    call.drain()
    assert [event.split()[:2] for event in call.take()] == [
        ["TranscriptionFailed", "item_1"],
        ["TranscriptionFailed", "item_2"],
    ]


def test_a_full_worker_is_asked_again_until_it_is_too_late() -> None:
    worker = FakeWorker(num_lanes=0)
    call = Call(worker, limits=Limits(queue_ms=2_000))
    committed(call)
    assert [event.split()[:2] for event in call.wait(2_000)] == [["TranscriptionFailed", "item_1"]]
    assert 2 <= sum(isinstance(c, OpenSession) for c in call.sent) <= 4


def test_without_a_worker_it_waits_for_one() -> None:
    call = Call()
    call.lose_worker()
    committed(call)
    assert call.wait(1_000) == []
    call.new_worker()
    assert call.make_all()[-1].startswith("TranscriptionCompleted item_1")


def test_the_text_of_a_deleted_item_goes_nowhere() -> None:
    call = Call()
    committed(call)
    call.wait(200)
    call.send(ItemDelete(item_id="item_1"))
    assert call.make_all()[-1].startswith("TranscriptionCompleted item_1")


def test_switched_off_means_off() -> None:
    call = Call()
    off = SessionUpdate(session={"audio": {"input": {"transcription": None}}})
    call.send(TRANSCRIBE, MANUAL, off, sound(0.2), InputAudioCommit())
    assert call.wait(5_000) == []
    assert not any(isinstance(c, CommitTurn) for c in call.sent)
