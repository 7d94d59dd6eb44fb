"""Replies that go wrong behind the gateway: each ends once, and the next is made from what the items say."""

from __future__ import annotations

import pytest

from server.events import ResponseCancel, ResponseCreate, ResponseRequest
from streaming.packets import AudioDelta, CloseSession, DoneReason, OpenSession, TurnDone, Usage
from tests.fakes import FakeWorker, Script
from tests.server.driving import Call
from tests.server.test_session import LONG, replying, sound, typed

ASIDE = ResponseRequest("none")
IN_TEXT = ResponseRequest(overrides={"output_modalities": ["text"]})


def test_lost_sound_fails_the_reply() -> None:
    call = replying()
    call.session.receive_reply(AudioDelta("sess_1.1", 0, 99_999, bytes(4)), 0)
    call.drain()
    assert call.take()[-1] == "ResponseDone resp_1 failed server_error [item_1]"
    assert call.sent[-1] == CloseSession("sess_1.1")


@pytest.mark.parametrize("is_cancelling", [False, True])
def test_a_failed_turn_ends_its_response_and_its_worker_session(is_cancelling: bool) -> None:
    call = replying()
    if is_cancelling:
        call.session.receive_event(ResponseCancel(), 0)
        call.session.commands_to_send()
    call.worker.fail_turn("sess_1.1", "server_error")
    call.drain()
    reason = "cancelled client_cancelled" if is_cancelling else "failed server_error"
    assert call.take()[-1] == f"ResponseDone resp_1 {reason} [item_1]"
    assert call.worker.sessions == {}


def test_a_failed_session_ends_what_was_being_cancelled() -> None:
    call = replying()
    call.session.receive_event(ResponseCancel(), 0)
    call.session.commands_to_send()
    call.worker.fail("sess_1.1")
    call.drain()
    assert call.take()[-1] == "ResponseDone resp_1 cancelled client_cancelled [item_1]"


def test_a_lost_worker_ends_what_was_being_cancelled() -> None:
    call = replying()
    call.session.receive_event(ResponseCancel(), 0)
    assert call.lose_worker()[-1] == "ResponseDone resp_1 cancelled client_cancelled [item_1]"


@pytest.mark.parametrize("how", ["session", "turn", "worker"])
def test_out_of_band_fails_alone(how: str) -> None:
    call = Call()
    call.send(ResponseCreate(response=ASIDE), ResponseCreate(response=ASIDE))
    if how == "session":
        call.worker.fail("sess_1.1")
    elif how == "turn":
        call.worker.fail_turn("sess_1.1", "context_full")
    else:
        assert call.lose_worker() == ["ResponseDone resp_1 failed server_error []"]
        call.new_worker()
    call.drain()
    code = "context_length_exceeded" if how == "turn" else "server_error"
    assert call.take() in ([f"ResponseDone resp_1 failed {code} []"], [])
    assert call.make_all()[-1] == "ResponseDone resp_2 completed [item_1]"


def test_out_of_band_can_be_cancelled_by_its_id() -> None:
    call = Call()
    call.send(ResponseCreate(response=ASIDE))
    cancel = ResponseCancel(event_id="e1", response_id="resp_1")
    assert call.send(cancel) == ["ResponseDone resp_1 cancelled client_cancelled []"]
    assert call.send(cancel) == ["Error response_cancel_not_active e1"]
    assert call.worker.sessions == {}


def test_a_text_reply_that_was_cancelled_is_told_to_another_session() -> None:
    """The worker keeps all the text it made, and only it knows how much that is."""
    call = Call(FakeWorker(lambda _: LONG))
    call.send(typed("Hi"), ResponseCreate(response=IN_TEXT))
    call.make(1)
    call.send(ResponseCancel())
    call.send(ResponseCreate())
    assert sum(isinstance(c, OpenSession) for c in call.sent) == 2
    assert call.knows() == [("user", "Hi"), ("assistant", "One,")]


def test_a_reply_over_before_its_cancel_arrived_is_cut_all_the_same() -> None:
    call = replying()
    call.worker.make_all("sess_1.1")
    late = call.worker.take_replies()
    call.session.receive_event(ResponseCancel(), 0)
    call.session.commands_to_send()  # lost on its way behind the next turn
    for reply in late:
        call.session.receive_reply(reply, 0)
    call.drain()
    call.send(ResponseCreate())
    assert call.knows() == [("user", "Hi")]  # of three seconds half a one was sent


def test_the_end_of_a_reply_nobody_waits_for_makes_its_session_untrusted() -> None:
    call = replying()
    call.session.receive_event(ResponseCancel(), 0)
    call.session.commands_to_send()
    call.session.tick(250)
    call.session.receive_reply(TurnDone("sess_1.1", 0, DoneReason.COMPLETED, Usage()), 300)
    call.drain()
    call.sent.clear()
    call.send(ResponseCreate())
    assert isinstance(call.sent[0], CloseSession)


def test_input_given_up_is_told_again() -> None:
    call = Call()
    call.send(sound(3))
    call.starts(0, 20_000)
    call.hear(40_000)
    call.worker.fail_turn("sess_1.1", "server_error")
    call.drain()
    call.hear(41_000)
    call.stops(44_000)
    assert [kind for kind, _ in call.knows()] == ["clip"]
    assert call.make_all()[-1] == "ResponseDone resp_1 completed [item_2]"


def test_a_context_nearly_full_is_relieved_before_it_is() -> None:
    call = Call(FakeWorker(lambda _: Script(("Yes.",), 24_000)))
    call.send(typed("x" * 3_000, "u1"), ResponseCreate())
    call.make_all()
    call.send(typed("y" * 3_000, "u2"), ResponseCreate())
    [session_id] = call.worker.running()
    session = call.worker.sessions[session_id]
    assert session.reply is not None
    full = Usage(input_text_tokens=30_000)
    call.session.receive_reply(TurnDone(session_id, 1, DoneReason.COMPLETED, full), 0)
    assert call.session._journal._context_from > 0 or len(call.session._journal.records) < 4


def test_what_is_stale_is_dropped() -> None:
    call = replying()
    call.make_all()
    call.session.receive_reply(AudioDelta("sess_1.1", 0, 0, bytes(4)), 0)
    call.session.receive_reply(TurnDone("sess_0.9", 0, DoneReason.FAILED, Usage()), 0)
    call.drain()
    assert call.take() == []
