"""Conversations as transcripts: what the client, the detector and the worker say, and all that comes of it."""

from __future__ import annotations

import pytest

from server.dialect import Dialect
from server.events import (
    EventError,
    InputAudioAppend,
    InputAudioClear,
    InputAudioCommit,
    InputImageAppend,
    InputVideoAppend,
    InputVideoClear,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemRetrieved,
    ItemTruncate,
    PlaybackAck,
    ResponseCancel,
    ResponseCreate,
    ResponseDone,
    ResponseRequest,
    SessionFinish,
    SessionUpdate,
    TranscriptionSessionUpdate,
)
from server.items import (
    AssistantMessage,
    FunctionCallOutput,
    InputAudio,
    InputImage,
    InputText,
    ItemReference,
    OutputText,
    SystemMessage,
    UserMessage,
)
from server.limits import Limits
from server.media.jobs import Decoded, DecodedFrame, FaultCode, MediaFault, Stills, StreamData
from server.tools import write_call
from streaming.errors import ClientError
from streaming.media import ClipKind
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendText,
    CancelTurn,
    CloseSession,
    CommitTurn,
    HoldTurn,
    InputRefused,
    OpenClip,
    OpenSession,
    ReportPlayed,
    TruncateTurn,
)
from streaming.vad import VadSettings
from tests.fakes import FakeWorker, Script
from tests.server.driving import Call
from tests.server.fuzz import BIG_JPEG, JPEG, PNG, WEBM

MANUAL = SessionUpdate(session={"audio": {"input": {"turn_detection": None}}})
HELD = 32
"""Samples that the resampler keeps until it knows what follows."""
LONG = Script(("One, ", "two, ", "three."), 72_000)


def typed(text: str, item_id: str = "u1") -> ItemCreate:
    return ItemCreate(item=UserMessage(item_id, [InputText(text)]))


def sound(seconds: float) -> InputAudioAppend:
    """Sound at the 24 kHz of the default format."""
    return InputAudioAppend(audio=b"\1\2" * int(24_000 * seconds))


def vad(**members: object) -> SessionUpdate:
    detection = {"type": "server_vad", **members}
    return SessionUpdate(
        session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
    )


def speak(call: Call, seconds: float = 1.0) -> list[str]:
    """A spoken turn from where the last one ended, half a second of silence included."""
    start = call.session._turns.input.clock_sample
    events = call.send(sound(seconds + 0.5))
    events += call.starts(start, start + 8_000)
    return events + call.stops(start + int(16_000 * seconds) + 8_000)


def replying(script: Script = LONG) -> Call:
    """A call in the middle of its first reply: one word and half a second are out."""
    call = Call(FakeWorker(lambda _: script))
    call.send(typed("Hi"), ResponseCreate())
    call.make(1, 12_000)
    return call


# ---- turns


def test_the_session_introduces_itself_first() -> None:
    call = Call(is_reading=False)
    assert call.read() == ["SessionCreated", "ConversationCreated conv_1"]


def test_a_typed_turn_is_answered_in_speech() -> None:
    call = Call()
    assert call.send(typed("Hi"), ResponseCreate()) == [
        "ItemAdded - user:u1[text:Hi]completed",
        "ItemDone - user:u1[text:Hi]completed",
        "ResponseCreated resp_1 in_progress",
    ]
    assert call.make(1, 6_000) == [
        "OutputItemAdded resp_1.0 assistant:item_1[]in_progress",
        "ItemAdded u1 assistant:item_1[]in_progress",
        "ContentPartAdded item_1 audio ''",
        "OutputTranscriptDelta resp_1 item_1 0 0 Good",
        "OutputAudioDelta item_1 12000",
    ]
    assert call.make_all() == [
        "OutputTranscriptDelta resp_1 item_1 0 0  day",
        "OutputTranscriptDelta resp_1 item_1 0 0 .",
        "OutputAudioDelta item_1 19200",
        "OutputAudioDelta item_1 16800",
        "OutputAudioDone resp_1 item_1 0 0",
        "OutputTranscriptDone resp_1 item_1 0 0 Good day.",
        "ContentPartDone item_1 audio 'Good day.'",
        "ItemDone u1 assistant:item_1[said:Good day.]completed",
        "OutputItemDone resp_1.0 assistant:item_1[said:Good day.]completed",
        "ResponseDone resp_1 completed [item_1]",
    ]
    assert [type(c).__name__ for c in call.sent] == ["OpenSession", "AppendText", "CommitTurn"]


def test_a_typed_turn_is_answered_in_text() -> None:
    call = Call()
    text = ResponseRequest(overrides={"output_modalities": ["text"]})
    call.send(typed("Hi"), ResponseCreate(response=text))
    assert call.make_all() == [
        "OutputItemAdded resp_1.0 assistant:item_1[]in_progress",
        "ItemAdded u1 assistant:item_1[]in_progress",
        "ContentPartAdded item_1 text ''",
        "OutputTextDelta resp_1 item_1 0 0 Good",
        "OutputTextDelta resp_1 item_1 0 0  day",
        "OutputTextDelta resp_1 item_1 0 0 .",
        "OutputTextDone resp_1 item_1 0 0 Good day.",
        "ContentPartDone item_1 text 'Good day.'",
        "ItemDone u1 assistant:item_1[OutputText]completed",
        "OutputItemDone resp_1.0 assistant:item_1[OutputText]completed",
        "ResponseDone resp_1 completed [item_1]",
    ]
    [commit] = [c for c in call.sent if isinstance(c, CommitTurn)]
    assert not commit.options.speech


def test_a_spoken_turn_is_told_while_it_is_spoken() -> None:
    call = Call()
    assert call.send(sound(3)) == []
    assert call.starts(4_800, 8_000) == ["SpeechStarted 300 item_1"]
    assert [type(c).__name__ for c in call.sent] == ["OpenSession"]
    call.hear(40_000)
    assert [type(c).__name__ for c in call.sent[1:]] == ["OpenClip", "AppendChunk"]
    assert call.stops(46_080) == [
        "SpeechStopped 2880 item_1",
        "InputCommitted None item_1",
        "ItemAdded - user:item_1[audio:None]completed",
        "ItemDone - user:item_1[audio:None]completed",
        "ResponseCreated resp_1 in_progress",
    ]
    [_, told] = call.knows()[0]
    assert isinstance(told, tuple)
    assert told[:2] == (ClipKind.SOUND, (46_080 - 4_800) * 2)


def test_sound_is_sent_only_as_far_as_it_was_judged() -> None:
    call = Call()
    call.send(sound(10))
    call.starts(0, 1_000)
    assert not any(isinstance(c, OpenClip) for c in call.sent)
    call.hear(100_000)
    num = sum(c.chunk.num_samples for c in call.sent if hasattr(c, "chunk"))
    assert num == 96_040


def test_a_manual_turn_makes_no_response_of_itself() -> None:
    call = Call()
    assert call.send(MANUAL, sound(0.5), InputAudioCommit()) == [
        "SessionUpdated",
        "InputCommitted None item_1",
        "ItemAdded - user:item_1[audio:None]completed",
        "ItemDone - user:item_1[audio:None]completed",
    ]
    assert call.send(ResponseCreate()) == ["ResponseCreated resp_1 in_progress"]
    assert call.knows()[0][0] == "clip"


def test_a_manual_commit_during_speech_ends_the_turn_under_its_id() -> None:
    call = Call()
    call.send(sound(1))
    assert call.starts(0, 8_000) == ["SpeechStarted 0 item_1"]
    assert call.send(InputAudioCommit())[0] == "InputCommitted None item_1"
    assert call.stops(16_000) == []
    assert call.heard[-1] == 16_000  # the detector knows that this turn is over


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0.00"), (0.05, "50.00")], ids=["nothing", "too-little"]
)
def test_a_commit_of_too_little_is_refused(seconds: float, said: str) -> None:
    call = Call(is_reading=False)
    call.send(MANUAL, sound(seconds), InputAudioCommit(event_id="e1"))
    error = list(iter(call.session.take_event, None))[-1]
    assert error.code == "input_audio_buffer_commit_empty"  # type: ignore[union-attr]
    assert error.message == (  # type: ignore[union-attr]
        "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, "
        f"but buffer only has {said}ms of audio."
    )


def test_clear_forgets_what_was_said_and_resets_the_detector() -> None:
    call = Call()
    call.send(sound(1))
    call.starts(0, 16_000)
    assert call.send(InputAudioClear()) == ["InputCleared"]
    assert call.heard[-1] == 16_000 - HELD
    assert call.send(InputAudioCommit(event_id="e1")) == [
        "Error input_audio_buffer_commit_empty e1"
    ]
    assert call.starts(8_000, 16_000) == []  # decided before the detector heard of it
    call.send(typed("Hi"), ResponseCreate())
    assert call.knows() == [("user", "Hi")]


def test_a_turn_without_an_answer_is_part_of_the_next() -> None:
    call = Call()
    call.send(vad(create_response=False))
    assert not any("Response" in event for event in speak(call))
    assert speak(call)[-1].startswith("ItemDone item_1")
    call.send(ResponseCreate())
    assert [kind for kind, _ in call.knows()] == ["clip", "clip"]


def test_a_turn_that_never_ends_is_ended_and_goes_on_as_the_next() -> None:
    call = Call(limits=Limits(turn_ms=2_000))
    call.send(sound(1.9))
    call.starts(0, 16_000)
    call.send(sound(1.0))
    events = call.hear(40_000)
    assert events[0] == "SpeechStopped 2500 item_1"
    assert "ResponseCreated resp_1 in_progress" in events


def test_a_buffer_nobody_commits_does_not_grow_for_ever() -> None:
    call = Call(limits=Limits(turn_ms=2_000))
    assert call.send(MANUAL, sound(3)) == ["SessionUpdated", "Error input_audio_buffer_too_large -"]
    assert call.send(InputAudioCommit()) == ["Error input_audio_buffer_commit_empty -"]  # all of it
    assert call.send(sound(1), InputAudioCommit())[0] == "InputCommitted None item_2"


# ---- interruption


def test_speech_interrupts_the_reply() -> None:
    call = replying()
    call.send(sound(1))
    assert call.starts(4_800, 8_000) == [
        "SpeechStarted 300 item_2",
        "OutputAudioDone resp_1 item_1 0 0",
        "OutputTranscriptDone resp_1 item_1 0 0 One,",
        "ContentPartDone item_1 audio 'One,'",
        "ItemDone u1 assistant:item_1[said:One,]incomplete",
        "OutputItemDone resp_1.0 assistant:item_1[said:One,]incomplete",
        "ResponseDone resp_1 cancelled turn_detected [item_1]",
    ]
    assert [c for c in call.sent if isinstance(c, CancelTurn)] == [
        CancelTurn("sess_1.1", 0, 12_000)
    ]


def test_what_waits_is_discarded_and_the_end_says_what_was_sent() -> None:
    call = Call(FakeWorker(lambda _: LONG), is_reading=False)
    call.send(typed("Hi"), ResponseCreate())
    call.make(2, 24_000)
    while "ContentPartAdded" not in call.take()[-1:].__str__():
        event = call.session.take_event()
        assert event is not None
        call.events.append(event)
    call.send(ResponseCancel())
    assert call.read() == [
        "OutputAudioDone resp_1 item_1 0 0",
        "OutputTranscriptDone resp_1 item_1 0 0 ",
        "ContentPartDone item_1 audio ''",
        "ItemDone u1 assistant:item_1[said:]incomplete",
        "OutputItemDone resp_1.0 assistant:item_1[said:]incomplete",
        "ResponseDone resp_1 cancelled client_cancelled [item_1]",
    ]


def test_a_reply_that_is_made_but_not_sent_can_still_be_interrupted() -> None:
    call = Call(FakeWorker(lambda _: LONG), is_reading=False)
    call.send(typed("Hi"), ResponseCreate())
    call.make_all()
    call.send(ResponseCancel())
    events = call.read()
    assert not any("Delta" in event for event in events)
    assert events[-1] == "ResponseDone resp_1 cancelled client_cancelled [item_1]"
    assert TruncateTurn("sess_1.1", 0, 0) in call.sent


def test_a_response_cancelled_before_its_first_item_has_none() -> None:
    call = Call()
    call.send(ResponseCreate())
    assert call.send(ResponseCancel()) == ["ResponseDone resp_1 cancelled client_cancelled []"]


def test_nothing_to_cancel_is_said_in_the_words_clients_know() -> None:
    call = Call(is_reading=False)
    call.read()
    call.send(ResponseCancel(event_id="e1"))
    error = call.session.take_event()
    assert error.code == "response_cancel_not_active"  # type: ignore[union-attr]
    assert error.message.startswith("Cancellation failed")  # type: ignore[union-attr]


def test_done_waits_for_what_the_reply_cost() -> None:
    call = replying()
    call.session.receive_event(ResponseCancel(), 0)
    assert call.session.take_event() is not None
    while call.session.take_event() is not None:
        pass
    call.drain()
    [done] = call.events
    assert isinstance(done, ResponseDone)
    assert done.response.usage is not None
    assert done.response.usage.output_audio_tokens == 25


def test_done_does_not_wait_for_ever() -> None:
    call = replying()
    call.session.receive_event(ResponseCancel(), call.now_ms)
    call.session.commands_to_send()  # the worker never hears of it
    call.read()
    assert call.session.wake_ms == 250
    call.session.tick(250)
    assert call.read() == ["ResponseDone resp_1 cancelled client_cancelled [item_1]"]


def test_what_comes_behind_a_cancel_is_answered_behind_it() -> None:
    call = replying()
    session = call.session
    session.receive_event(ResponseCancel(), 0)
    session.receive_event(typed("Stop", "u2"), 0)
    session.receive_event(ResponseCreate(), 0)
    call.drain()
    names = [event.split()[0] for event in call.take()]
    assert names[-4:] == ["ResponseDone", "ItemAdded", "ItemDone", "ResponseCreated"]


def test_without_interruption_the_answer_comes_when_the_reply_is_over() -> None:
    call = replying()
    call.send(vad(interrupt_response=False))
    events = speak(call)
    assert not any("Response" in event for event in events)
    assert call.make_all()[-2:] == [
        "ResponseDone resp_1 completed [item_1]",
        "ResponseCreated resp_2 in_progress",
    ]


def test_words_run_about_two_seconds_ahead_of_the_voice() -> None:
    words = tuple(f"word{i:02} " for i in range(40))
    call = Call(FakeWorker(lambda _: Script(words, 480_000)))
    call.send(typed("Hi"), ResponseCreate())
    call.make(40)
    text = call.session._responses.main.message.text  # type: ignore[union-attr]
    assert 20 <= len(text) <= 50
    call.make(0, 48_000)
    text = call.session._responses.main.message.text  # type: ignore[union-attr]
    assert 50 <= len(text) <= 90
    assert any("word39" in event for event in call.make_all())


# ---- what was heard


def test_a_truncation_is_what_the_worker_says_is_left() -> None:
    call = replying()
    call.make_all()
    assert call.send(ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=1_100)) == [
        "ItemTruncated item_1 0 1100"
    ]
    assert call.send(ItemRetrieve(item_id="item_1")) == [
        "ItemRetrieved assistant:item_1[said:One,]completed"
    ]
    call.send(ResponseCreate())
    assert call.knows() == [("user", "Hi"), ("assistant", "One, ")]
    assert sum(isinstance(c, OpenSession) for c in call.sent) == 1


def test_truncations_take_the_least_and_never_more_than_there_is() -> None:
    call = replying()
    call.make_all()

    def cut(end_ms: int) -> list[str]:
        return call.send(ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=end_ms))

    assert cut(999_999) == ["ItemTruncated item_1 0 3000"]
    assert cut(2_000) == ["ItemTruncated item_1 0 2000"]
    assert cut(2_500) == ["ItemTruncated item_1 0 2000"]
    assert cut(0) == ["ItemTruncated item_1 0 0"]


def test_a_truncation_of_a_running_reply_stops_it() -> None:
    call = replying()
    events = call.send(ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=100))
    assert events[-2:] == [
        "ResponseDone resp_1 cancelled client_cancelled [item_1]",
        "ItemTruncated item_1 0 100",
    ]


def test_a_truncation_of_an_earlier_reply_is_estimated_and_the_model_told_anew() -> None:
    call = replying()
    call.make_all()
    call.send(typed("And?", "u2"), ResponseCreate())
    call.make_all()
    cut = ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=1_500)
    assert call.send(cut) == ["ItemTruncated item_1 0 1500"]
    call.send(ResponseCreate())
    assert [c for c in call.knows() if c[0] == "assistant"] == [
        ("assistant", "One,"),
        ("assistant", "One, two, three."),
    ]


def test_a_worker_that_does_not_answer_is_not_waited_for() -> None:
    call = replying()
    call.make_all()
    cut = ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=1_500)
    call.session.receive_event(cut, 0)
    call.session.commands_to_send()
    call.session.tick(250)
    assert call.read() == ["ItemTruncated item_1 0 1500"]


@pytest.mark.parametrize(
    ("item_id", "answer"),
    [
        ("nobody", "Error item_truncate_invalid_item_id e1"),
        ("u1", "Error invalid_value e1"),
        ("a1", "ItemTruncated a1 0 500"),
        ("gone", "ItemTruncated gone 0 500"),
    ],
)
def test_truncations_fail_only_for_what_never_was_or_no_assistant_said(
    item_id: str, answer: str
) -> None:
    call = Call()
    call.send(
        typed("Hi"),
        ItemCreate(item=AssistantMessage("a1", [OutputText("Yes.")])),
        ItemCreate(item=AssistantMessage("gone", [OutputText("No.")])),
        ItemDelete(item_id="gone"),
    )
    cut = ItemTruncate(event_id="e1", item_id=item_id, content_index=0, audio_end_ms=500)
    assert call.send(cut) == [answer]


def test_the_last_report_of_playback_counts_if_no_truncation_follows() -> None:
    call = replying()
    call.send(PlaybackAck(item_id="item_1", audio_end_ms=200))
    assert call.sent[-1] == ReportPlayed("sess_1.1", 0, 4_800)
    call.send(sound(1))
    call.starts(4_800, 8_000)
    call.sent.clear()
    assert call.wait(300) == []
    assert call.sent == [TruncateTurn("sess_1.1", 0, 4_800)]


def test_a_truncation_in_time_replaces_the_report() -> None:
    call = replying()
    call.send(PlaybackAck(item_id="item_1", audio_end_ms=200), ResponseCancel())
    call.send(ItemTruncate(item_id="item_1", content_index=0, audio_end_ms=400))
    call.sent.clear()
    call.wait(1_000)
    assert call.sent == []


def test_reports_of_what_was_never_said_are_ignored() -> None:
    call = Call()
    call.send(typed("Hi"))
    assert (
        call.send(
            PlaybackAck(item_id="u1", audio_end_ms=9), PlaybackAck(item_id="x", audio_end_ms=9)
        )
        == []
    )


# ---- items


def test_items_are_put_where_the_client_wants_them() -> None:
    call = Call()

    def create(item_id: str, after: str | None) -> list[str]:
        item = SystemMessage(item_id, [InputText(item_id)])
        return call.send(ItemCreate(event_id="e1", item=item, previous_item_id=after))

    assert create("a", None)[0] == "ItemAdded - system:a[text:a]completed"
    assert create("b", None)[0] == "ItemAdded a system:b[text:b]completed"
    assert create("c", "a")[0] == "ItemAdded a system:c[text:c]completed"
    assert create("d", "root")[0] == "ItemAdded - system:d[text:d]completed"
    assert create("", None)[0] == "ItemAdded b system:item_1[text:]completed"
    assert create("a", None) == ["Error item_create_duplicate_item_id e1"]
    assert create("e", "z") == ["Error item_create_invalid_previous_item_id e1"]
    call.send(ResponseCreate())
    assert call.knows() == [("system", text) for text in "dacb"]


def test_deleting_and_inserting_tell_another_worker_session_everything() -> None:
    call = replying()
    call.make_all()
    call.send(ItemDelete(item_id="u1"))
    call.send(ItemCreate(item=UserMessage("u0", [InputText("Hello")]), previous_item_id="root"))
    call.sent.clear()
    call.send(ResponseCreate())
    assert [type(c).__name__ for c in call.sent] == [
        "CloseSession", "OpenSession", "AppendText", "AppendText", "CommitTurn",
    ]  # fmt: skip
    assert call.knows() == [("user", "Hello"), ("assistant", "One, two, three.")]


def test_an_item_put_before_speech_that_goes_on_waits_for_its_end() -> None:
    call = Call()
    call.send(sound(4))
    call.starts(0, 40_000)
    call.sent.clear()
    call.send(ItemCreate(item=UserMessage("u1", [InputImage(JPEG)])))
    call.hear(60_000)
    assert call.sent == []
    call.stops(64_000)
    assert isinstance(call.sent[0], CancelTurn)
    assert [kind for kind, _ in call.knows()] == ["image", "clip"]


@pytest.mark.parametrize("event", [ItemRetrieve, ItemDelete])
def test_unknown_items_are_named_in_the_error(event: type[ItemRetrieve | ItemDelete]) -> None:
    code = (
        "item_retrieve_invalid_item_id" if event is ItemRetrieve else "item_delete_invalid_item_id"
    )
    assert Call().send(event(event_id="e1", item_id="x")) == [f"Error {code} e1"]


def test_a_retrieved_item_brings_back_its_sound() -> None:
    call = Call()
    call.send(MANUAL, sound(0.5), InputAudioCommit())
    call.session.receive_event(ItemRetrieve(item_id="item_1"), 0)
    event = call.session.take_event()
    assert isinstance(event, ItemRetrieved)
    [part] = event.item.content  # type: ignore[union-attr]
    assert isinstance(part, InputAudio)
    assert part.pcm is not None
    assert len(part.pcm) == 16_000


def test_an_items_sound_is_heard_in_the_input_format() -> None:
    call = Call()
    call.send(SessionUpdate(session={"input_audio_format": "g711_ulaw"}))
    call.send(
        ItemCreate(item=UserMessage("u1", [InputAudio(encoded=b"\xff" * 4_000)])), ResponseCreate()
    )
    [(kind, clip)] = call.knows()
    assert isinstance(clip, tuple)
    assert (kind, clip[:2]) == ("clip", (ClipKind.SOUND, 16_000))


def test_the_newest_pictures_stay_in_view() -> None:
    call = Call()
    call.send(SessionUpdate(session={"video": {"input": {"max_frames": 2}}}))
    for i in range(4):
        call.send(ItemCreate(item=UserMessage(f"p{i}", [InputImage(JPEG + bytes([i]))])))
    call.send(ResponseCreate())
    assert call.knows() == [("image", JPEG + bytes([i])) for i in (2, 3)]


# ---- responses


def test_a_greeting_needs_no_item() -> None:
    call = Call()
    assert call.send(ResponseCreate()) == ["ResponseCreated resp_1 in_progress"]
    assert call.make_all()[-1] == "ResponseDone resp_1 completed [item_1]"


def test_a_second_response_is_refused_while_one_runs() -> None:
    call = Call(is_reading=False)
    call.send(ResponseCreate(), ResponseCreate(event_id="e2"))
    error = list(iter(call.session.take_event, None))[-1]
    assert error.code == "conversation_already_has_active_response"  # type: ignore[union-attr]
    assert "resp_1" in error.message  # type: ignore[union-attr]


def test_instructions_of_one_response_replace_the_sessions_for_it_alone() -> None:
    call = Call()
    greet = ResponseRequest(overrides={"instructions": "Greet."})
    call.send(typed("Hi"), ResponseCreate(response=greet))
    call.make_all()
    call.send(ResponseCreate())
    opened = [c.settings.system_prompt for c in call.sent if isinstance(c, OpenSession)]
    assert opened == ["Greet.", "Be kind."]
    assert call.knows() == [("user", "Hi"), ("assistant", "Good day.")]


def test_settings_decide_how_a_reply_is_made() -> None:
    call = Call()
    overrides: dict[str, object] = {
        "voice": "verse", "temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 5,
        "max_output_tokens": 50, "repetition_penalty": 1.1,
    }  # fmt: skip
    call.send(ResponseCreate(response=ResponseRequest(overrides=overrides)))
    [commit] = [c for c in call.sent if isinstance(c, CommitTurn)]
    options = commit.options
    assert (options.voice, options.max_text_tokens, options.noise_seed) == ("Ethan", 50, 5)
    thinker = options.thinker
    assert thinker is not None
    assert (thinker.temperature, thinker.top_p, thinker.top_k) == (0.7, 0.9, 20)
    assert (thinker.repetition_penalty, thinker.seed) == (1.1, 5)


def test_a_wrong_override_starts_nothing() -> None:
    call = Call()
    wrong = ResponseRequest(overrides={"tools": 7})
    assert call.send(ResponseCreate(event_id="e1", response=wrong)) == ["Error invalid_value e1"]
    assert call.sent == []


def test_out_of_band_leaves_the_conversation_alone() -> None:
    call = Call()
    call.send(typed("Hi"))
    aside = ResponseRequest(
        "none", (SystemMessage("s", [InputText("Sum up.")]), ItemReference("u1"))
    )
    assert call.send(ResponseCreate(response=aside)) == ["ResponseCreated resp_1 in_progress"]
    assert [known for *_, known in call.worker.commits] == [[("system", "Sum up."), ("user", "Hi")]]
    events = call.make_all()
    assert not any(
        "ItemAdded u1" in event or "ItemDone" in event.split()[0][:8] for event in events
    )
    assert events[-1] == "ResponseDone resp_1 completed [item_1]"
    assert call.worker.sessions == {}
    assert call.session._journal.tail_id == "u1"


def test_out_of_band_runs_beside_a_reply_and_speech_does_not_stop_it() -> None:
    call = replying()
    assert call.send(ResponseCreate(response=ResponseRequest("none"))) == [
        "ResponseCreated resp_2 in_progress"
    ]
    call.send(sound(1))
    events = call.starts(4_800, 8_000)
    assert [e for e in events if "ResponseDone" in e] == [
        "ResponseDone resp_1 cancelled turn_detected [item_1]"
    ]
    assert call.make_all()[-1] == "ResponseDone resp_2 completed [item_3]"


def test_out_of_band_responses_queue_up_to_a_limit() -> None:
    call = Call()
    aside = ResponseRequest("none")
    for _ in range(4):
        call.send(ResponseCreate(response=aside))
    assert len(call.worker.running()) == 1
    assert call.send(ResponseCreate(event_id="e5", response=aside)) == [
        "Error rate_limit_exceeded e5"
    ]
    done = [event for _ in range(4) for event in call.make_all() if "ResponseDone" in event]
    assert done == [f"ResponseDone resp_{i} completed [item_{i}]" for i in (1, 2, 3, 4)]


def test_a_reference_to_no_item_is_refused() -> None:
    request = ResponseRequest("none", (ItemReference("x"),))
    assert Call().send(ResponseCreate(event_id="e1", response=request)) == [
        "Error invalid_value e1"
    ]


def test_a_response_with_an_input_of_its_own_still_joins_the_conversation() -> None:
    call = Call()
    call.send(typed("Hi"))
    request = ResponseRequest("auto", (UserMessage("i", [InputText("What else?")]),))
    call.send(ResponseCreate(response=request))
    assert call.make_all()[1] == "ItemAdded u1 assistant:item_1[]in_progress"
    call.send(ResponseCreate())
    assert call.knows() == [("user", "Hi"), ("assistant", "Good day.")]


def test_a_reply_that_hits_a_limit_is_incomplete() -> None:
    from streaming.packets import DoneReason

    call = replying()
    session = call.worker.sessions["sess_1.1"]
    assert session.reply is not None
    session.reply.is_over = True
    call.worker._finish("sess_1.1", session, DoneReason.MAX_TOKENS)
    call.drain()
    assert call.take()[-1] == "ResponseDone resp_1 incomplete max_output_tokens [item_1]"


# ---- tools

LOOK = SessionUpdate(session={"type": "realtime", "tools": [{"type": "function", "name": "look"}]})


def test_a_call_is_never_spoken_and_comes_with_its_name_from_the_start() -> None:
    call = Call(FakeWorker(lambda _: Script((write_call("look", '{"at": 1}'),), 0)))
    call.send(LOOK, typed("Hi"), ResponseCreate())
    assert call.make_all() == [
        "OutputItemAdded resp_1.0 call:item_1:call_1 look()in_progress",
        "ItemAdded u1 call:item_1:call_1 look()in_progress",
        "ArgumentsDelta call_1 '{\"at\": 1}'",
        "ArgumentsDone call_1 look '{\"at\": 1}'",
        'ItemDone u1 call:item_1:call_1 look({"at": 1})completed',
        'OutputItemDone resp_1.0 call:item_1:call_1 look({"at": 1})completed',
        "ResponseDone resp_1 completed [item_1]",
    ]
    [commit] = [c for c in call.sent if isinstance(c, CommitTurn)]
    assert commit.options.silent_from == "<tool_call>"


def test_words_come_before_the_call_and_the_output_is_read() -> None:
    text = ("Let me ", "look. ", write_call("look", "{}"))
    call = Call(FakeWorker(lambda s: Script(text if len(s.known) < 2 else ("It is red.",), 12_000)))
    call.send(LOOK, typed("Hi"), ResponseCreate())
    events = call.make_all()
    assert events[-1] == "ResponseDone resp_1 completed [item_1 item_2]"
    assert events.index("OutputItemDone resp_1.0 assistant:item_1[said:Let me look.]completed") < (
        events.index("OutputItemAdded resp_1.1 call:item_2:call_1 look()in_progress")
    )
    output = ItemCreate(item=FunctionCallOutput("o1", "call_1", "red"))
    assert call.send(output)[0] == "ItemAdded item_2 output:o1:call_1 red"
    call.sent.clear()
    call.send(ResponseCreate())
    assert [type(c).__name__ for c in call.sent] == ["AppendText", "CommitTurn"]
    assert call.sent[0] == AppendText(
        "sess_1.1", 1, "<tool_response>\nred\n</tool_response>", "user"
    )


def test_an_interrupted_reply_loses_the_call_nobody_has_seen() -> None:
    text = ("Let me ", "look. ", write_call("look", "{}"), " ", ".")
    call = Call(FakeWorker(lambda _: Script(text, 24_000)))
    call.send(LOOK, typed("Hi"), ResponseCreate())
    call.make(3, 24_000)
    assert call.send(ResponseCancel())[-1] == (
        "ResponseDone resp_1 cancelled client_cancelled [item_1]"
    )
    call.send(ResponseCreate())
    assert call.knows() == [("user", "Hi"), ("assistant", "Let me look.")]


# ---- frames


def test_frames_are_seen_with_the_speech_they_came_with() -> None:
    call = Call()
    call.send(sound(1))
    call.send(InputImageAppend(image=JPEG), sound(2), InputImageAppend(image=JPEG), sound(1))
    call.starts(16_000, 20_000)
    call.hear(60_000)
    call.stops(60_000)
    [(_, clip)] = call.knows()
    assert isinstance(clip, tuple)
    assert clip[0] is ClipKind.VIDEO_WITH_SOUND
    assert clip[3:] == (("pair", 0, 1), ("pair", 1, 1), ("pair", 2, 1))


def test_a_picture_that_comes_late_in_a_manual_turn_is_shown_behind_its_sound() -> None:
    call = Call()
    call.send(MANUAL, sound(3), InputImageAppend(image=JPEG), sound(1), InputAudioCommit())
    call.send(ResponseCreate())
    told = [type(c) for c in call.sent if not isinstance(c, OpenSession)]
    assert told == [OpenClip, AppendChunk, AppendChunk, AppendImage, CommitTurn]


def test_frames_alone_can_be_committed() -> None:
    call = Call()
    call.now_ms = 1_000
    call.send(MANUAL, InputImageAppend(image=JPEG))
    call.now_ms = 3_000
    events = call.send(InputImageAppend(image=JPEG), InputAudioCommit())
    assert events == [
        "InputCommitted None item_1",
        "ItemAdded - user:item_1[]completed",
        "ItemDone - user:item_1[]completed",
    ]
    call.send(ResponseCreate())
    [(_, clip)] = call.knows()
    assert isinstance(clip, tuple)
    assert clip[0] is ClipKind.VIDEO


def test_frames_from_before_the_first_sound_move_to_its_clock() -> None:
    call = Call()
    call.now_ms = 60_000
    call.send(MANUAL, InputImageAppend(image=JPEG), sound(1), InputAudioCommit(), ResponseCreate())
    [(_, clip)] = call.knows()
    assert isinstance(clip, tuple)
    assert clip[0] is ClipKind.VIDEO_WITH_SOUND


def test_pictures_a_worker_should_not_open_go_through_a_decoder() -> None:
    call = Call()
    call.send(
        ItemCreate(item=UserMessage("u1", [InputText("See"), InputImage(PNG), InputText("!")]))
    )
    [job] = call.session.media_to_decode()
    assert job == Stills("sess_1.1", PNG, 313_600)
    assert call.send(ResponseCreate()) == ["ResponseCreated resp_1 in_progress"]
    assert [c for c in call.sent if isinstance(c, CommitTurn)] == []
    frame = DecodedFrame(0, JPEG)
    call.session.receive_decoded(Decoded(job.key, (frame,), is_job_done=True), 0)
    call.drain()
    assert call.worker.commits[0][2] == [("user", "See"), ("image", JPEG), ("user", "!")]


def test_a_picture_that_cannot_be_decoded_is_left_out() -> None:
    call = Call()
    call.send(
        ItemCreate(item=UserMessage("u1", [InputImage(BIG_JPEG), InputText("!")])), ResponseCreate()
    )
    [job] = call.session.media_to_decode()
    fault = MediaFault(FaultCode.INVALID_IMAGE, "broken")
    call.session.receive_decoded(Decoded(job.key, is_job_done=True, fault=fault), 0)
    call.drain()
    assert call.take() == ["Error invalid_image -"]
    assert call.knows() == [("user", "!")]


@pytest.mark.parametrize(
    "event",
    [
        InputImageAppend(event_id="e1", image=b"x"),
        ItemCreate(event_id="e1", item=UserMessage("u1", [InputImage(b"x")])),
    ],
)
def test_what_is_no_picture_is_refused(event: InputImageAppend | ItemCreate) -> None:
    assert Call().send(event) == ["Error invalid_image e1"]


def test_a_stream_gives_frames_and_sound() -> None:
    call = Call()
    call.send(MANUAL, InputVideoAppend(video=WEBM, format="video/webm", seq=0))
    [job] = call.session.media_to_decode()
    assert isinstance(job, StreamData)
    assert job.is_new and job.with_sound
    pcm = b"\1\0" * 32_000
    frames = (DecodedFrame(0, JPEG), DecodedFrame(500, JPEG))
    call.session.receive_decoded(Decoded(job.key, frames, pcm), 0)
    call.drain()
    assert call.send(InputAudioCommit())[:2] == [
        "InputCommitted None item_1",
        "VideoCommitted item_1 3 0 0 2000",
    ]
    call.send(InputVideoAppend(video=b"more", format="video/webm", seq=1))
    [job] = call.session.media_to_decode()
    assert isinstance(job, StreamData)
    assert not job.is_new
    assert call.send(InputAudioAppend(event_id="e1", audio=b"12")) == [
        "Error audio_source_conflict e1"
    ]


def test_sound_of_a_stream_is_refused_beside_other_sound() -> None:
    call = Call()
    call.send(MANUAL, sound(0.1), InputVideoAppend(video=WEBM, format="video/webm"))
    [job] = call.session.media_to_decode()
    for _ in range(2):
        call.session.receive_decoded(Decoded(job.key, pcm=bytes(64)), 0)
    call.drain()
    assert call.take() == ["Error audio_source_conflict -"]


def test_a_gap_in_a_stream_restarts_it() -> None:
    call = Call()
    call.send(InputVideoAppend(video=WEBM, format="video/webm", seq=0))
    gap = InputVideoAppend(event_id="e1", video=b"x", format="video/webm", seq=5)
    assert call.send(gap) == ["Error invalid_value e1"]
    call.session.media_to_decode()
    call.send(InputVideoAppend(video=b"x", format="video/webm", seq=6))
    [job] = call.session.media_to_decode()
    assert isinstance(job, StreamData)
    assert job.is_new


def test_a_dead_stream_is_silent_until_a_new_one_begins() -> None:
    call = Call()
    call.send(InputVideoAppend(video=WEBM, format="video/webm"))
    [job] = call.session.media_to_decode()
    fault = MediaFault(FaultCode.MEDIA_DECODE_ERROR, "broken")
    call.session.receive_decoded(Decoded(job.key, is_job_done=True, fault=fault), 0)
    call.drain()
    assert call.take() == ["Error media_decode_error -"]
    call.send(InputVideoAppend(video=b"x", format="video/webm"))
    assert call.session.media_to_decode() == []
    call.send(InputVideoAppend(video=WEBM, format="video/webm"))
    assert len(call.session.media_to_decode()) == 1


def test_frames_dropped_are_reported_once_a_second() -> None:
    call = Call()
    call.send(InputVideoClear(), sound(0.1))
    frames = [InputImageAppend(image=JPEG) for _ in range(5)]
    assert call.send(*frames) == ["VideoDropped 1 rate"]
    call.now_ms = 1_000
    assert call.send(InputImageAppend(image=JPEG)) == ["VideoDropped 4 rate"]


# ---- transcription

TRANSCRIBE = SessionUpdate(session={"audio": {"input": {"transcription": {"model": "m"}}}})


def test_a_turn_is_transcribed_behind_its_reply() -> None:
    call = Call(
        FakeWorker(lambda s: LONG if s.system == "Be kind." else Script((" hello ", "there")))
    )
    call.send(TRANSCRIBE)
    speak(call)
    call.wait(200)
    assert len(call.worker.sessions) == 1
    call.make(1, 6_000)
    assert len(call.worker.sessions) == 2
    assert [k[0] for k in call.worker.commits[1][2]] == ["clip", "user"]
    events = [e for e in call.make_all() if "Transcription" in e]
    assert events == [
        "TranscriptionDelta item_1 0 hello ",
        "TranscriptionDelta item_1 0 there",
        "TranscriptionCompleted item_1 0 hello there 1.498",
    ]
    assert call.send(ItemRetrieve(item_id="item_1")) == [
        "ItemRetrieved user:item_1[audio:hello there]completed"
    ]
    assert len(call.worker.sessions) == 1


def test_a_lost_transcription_is_said_to_have_failed() -> None:
    call = Call()
    call.send(TRANSCRIBE, MANUAL, sound(1), InputAudioCommit())
    call.wait(200)
    events = call.lose_worker()
    assert [e.split()[:3] for e in events] == [["TranscriptionFailed", "item_1", "0"]]


def test_the_transcription_update_changes_what_it_names() -> None:
    call = Call(dialect=Dialect.BETA)
    update = TranscriptionSessionUpdate(
        session={"input_audio_transcription": {"model": "x"}, "voice": "verse"}
    )
    assert call.send(update)[0].startswith("TranscriptionSessionUpdated")
    assert call.session.settings.transcription is not None
    assert call.session.settings.voice == "Chelsie"


# ---- the worker


def test_a_lost_worker_fails_the_reply_at_once() -> None:
    call = replying()
    assert call.lose_worker() == [
        "OutputAudioDone resp_1 item_1 0 0",
        "OutputTranscriptDone resp_1 item_1 0 0 One,",
        "ContentPartDone item_1 audio 'One,'",
        "ItemDone u1 assistant:item_1[said:One,]incomplete",
        "OutputItemDone resp_1.0 assistant:item_1[said:One,]incomplete",
        "ResponseDone resp_1 failed server_error [item_1]",
    ]


def test_the_next_worker_is_told_everything() -> None:
    call = replying()
    call.lose_worker()
    assert call.send(typed("Still there?", "u2"), ResponseCreate())[-1] == (
        "ResponseCreated resp_2 in_progress"
    )
    call.new_worker()
    assert call.knows() == [("user", "Hi"), ("assistant", "One,"), ("user", "Still there?")]
    assert call.make_all()[-1] == "ResponseDone resp_2 completed [item_2]"


def test_speech_goes_on_while_there_is_no_worker() -> None:
    call = Call()
    call.send(sound(2))
    call.starts(0, 16_000)
    call.lose_worker()
    call.hear(32_000)
    call.new_worker()
    call.stops(32_000)
    [(_, clip)] = call.knows()
    assert isinstance(clip, tuple)
    assert clip[1] == 64_000 - 2 * HELD


@pytest.mark.parametrize(
    ("heard", "again"), [(False, True), (True, False)], ids=["unheard", "heard"]
)
def test_half_a_sentence_is_never_said_twice(heard: bool, again: bool) -> None:
    call = Call(FakeWorker(lambda _: LONG))
    speak(call)
    if heard:
        call.make(1, 2_400)
    events = call.lose_worker()
    assert any("resp_1 failed server_error" in event for event in events)
    assert any("ResponseCreated resp_2" in event for event in events) is again


def test_a_response_does_not_wait_for_a_worker_for_ever() -> None:
    call = replying()
    call.lose_worker()
    call.send(ResponseCreate())
    assert call.wait(30_000) == ["ResponseDone resp_2 failed server_error []"]


def test_a_full_worker_is_asked_again() -> None:
    worker = FakeWorker(num_lanes=0)
    call = Call(worker)
    assert call.send(typed("Hi"), ResponseCreate())[-1] == "ResponseCreated resp_1 in_progress"
    worker.capacity = FakeWorker().capacity
    call.wait(1_000)
    assert call.make_all()[-1] == "ResponseDone resp_1 completed [item_1]"


def test_a_failed_session_fails_its_reply_and_nothing_else() -> None:
    call = replying()
    call.worker.fail("sess_1.1")
    call.drain()
    assert call.take()[-1] == "ResponseDone resp_1 failed server_error [item_1]"
    call.send(ResponseCreate())
    assert call.make_all()[-1] == "ResponseDone resp_2 completed [item_2]"


def test_when_the_context_is_full_the_oldest_turns_are_forgotten_silently() -> None:
    call = Call(FakeWorker(context_items=4))
    for i in range(4):
        assert not any(
            "Error" in e for e in call.send(typed(f"turn {i}", f"u{i}"), ResponseCreate())
        )
        assert call.make_all()[-1] == f"ResponseDone resp_{i + 1} completed [item_{i + 1}]"
    assert call.worker.commits[-1][2][-1] == ("user", "turn 3")
    assert ("user", "turn 0") not in call.worker.commits[-1][2]
    assert call.send(ItemRetrieve(item_id="u0")) == ["ItemRetrieved user:u0[text:turn 0]completed"]


def test_one_turn_that_is_too_long_fails_its_response() -> None:
    call = Call(FakeWorker(context_items=1))
    call.send(typed("a", "u1"), typed("b", "u2"))
    assert (
        call.send(ResponseCreate())[-1] == "ResponseDone resp_1 failed context_length_exceeded []"
    )


def test_refused_input_is_an_error_and_the_turn_goes_on() -> None:
    call = replying()
    call.session.receive_reply(InputRefused("sess_1.1", 0, "invalid_image", "broken"), 0)
    call.drain()
    assert call.take() == ["Error invalid_image -"]


def test_a_client_that_does_not_read_holds_the_reply() -> None:
    call = Call(
        FakeWorker(lambda _: Script(("a",), 480_000)),
        limits=Limits(hold_bytes=100_000),
        is_reading=False,
    )
    call.send(ResponseCreate())
    call.make(1, 48_000)
    assert HoldTurn("sess_1.1", 0, True) in call.sent
    call.read()
    call.drain()
    assert call.sent[-1] == HoldTurn("sess_1.1", 0, False)


def test_everything_is_closed_at_the_end() -> None:
    call = replying()
    call.send(ResponseCreate(response=ResponseRequest("none")))
    assert {c.session_id for c in call.session.end() if isinstance(c, CloseSession)} == set(
        call.worker.sessions
    )


# ---- the session itself


def test_each_update_is_answered_and_a_wrong_one_changes_nothing() -> None:
    call = Call()
    before = call.session.settings
    wrong = SessionUpdate(
        event_id="e1", session={"type": "realtime", "instructions": 5, "voice": "verse"}
    )
    assert call.send(wrong) == ["Error invalid_value e1"]
    assert call.session.settings is before
    assert (
        call.send(SessionUpdate(session={"tracing": "auto"}), SessionUpdate(session={}))
        == ["SessionUpdated"] * 2
    )


def test_the_payload_corrects_the_dialect_until_the_first_response() -> None:
    call = Call(dialect=Dialect.GA)
    call.send(SessionUpdate(session={"modalities": ["text"]}))
    assert call.session.dialect is Dialect.BETA
    call.send(SessionUpdate(session={"type": "realtime"}))
    assert call.session.dialect is Dialect.GA
    call.send(ResponseCreate(), SessionUpdate(session={"modalities": ["text"]}))
    assert call.session.dialect is Dialect.GA


def test_the_detector_gets_the_settings_before_the_sound() -> None:
    call = Call()
    assert call.heard[0] == VadSettings()
    call.send(vad(silence_duration_ms=900), sound(0.1))
    assert [x for x in call.heard if isinstance(x, VadSettings)][-1].silence_duration_ms == 900


def test_detection_switched_on_again_goes_by_the_detectors_clock() -> None:
    call = Call()
    call.send(MANUAL, sound(2), InputAudioCommit(), vad(create_response=False))
    call.send(sound(1))
    assert call.starts(1_600, 8_000)[0] == "SpeechStarted 2100 item_2"


def test_a_long_silence_after_a_reply_is_noticed_once() -> None:
    call = Call()
    call.send(vad(idle_timeout_ms=5_000), ResponseCreate())
    call.make_all()
    call.send(sound(1))
    call.hear(15_000)
    assert call.wait(5_999) == []
    events = call.wait(1)
    assert events[0] == "InputTimeout 437 998 item_2"
    assert events[-1] == "ResponseCreated resp_2 in_progress"
    call.lose_worker()
    assert call.wait(60_000)[-1:] != ["ResponseCreated resp_3 in_progress"]


def test_finish_lets_the_reply_end_and_closes_if_the_client_does_not() -> None:
    call = replying()
    call.send(sound(1))
    assert call.send(SessionFinish(), InputAudioCommit()) == []
    assert call.make_all()[-2:] == ["ResponseDone resp_1 completed [item_1]", "SessionFinished"]
    assert call.send(typed("too late")) == []
    call.wait(10_000)
    assert call.session.close is not None
    assert call.session.close.code == 1000


@pytest.mark.parametrize(
    ("minutes", "talks"), [(60, True), (15, False)], ids=["too-long", "silent"]
)
def test_a_session_expires(minutes: int, talks: bool) -> None:
    call = Call()
    events: list[str] = []
    for _ in range(minutes):
        events += call.wait(60_000) + (call.send(sound(0)) if talks else [])
    assert events == ["Error session_expired -"]
    assert call.session.close is not None
    assert call.session.close.code == 1001
    assert call.session.close.reason.startswith("Your session ")


def test_who_sends_only_garbage_is_shown_out() -> None:
    call = Call()
    garbage = EventError(ClientError("invalid_json", "no JSON"), "e1")
    for i in range(20):
        assert call.session.close is None
        call.session.receive_error(garbage, i)
    assert call.session.close is not None
    assert call.session.close.code == 1008
    call.drain()
    assert call.take() == ["Error invalid_json e1"] * 20


def test_images_told_are_not_told_twice() -> None:
    call = Call()
    call.send(ItemCreate(item=UserMessage("u1", [InputImage(JPEG)])), ResponseCreate())
    call.make_all()
    call.send(typed("And?", "u2"), ResponseCreate())
    assert sum(isinstance(c, AppendImage) for c in call.sent) == 1
