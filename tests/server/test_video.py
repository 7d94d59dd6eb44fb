"""Frames and streams of a camera: where they stand on the clock, and what becomes of those that cannot be used."""

from __future__ import annotations

import pytest

from server.events import (
    InputAudioAppend,
    InputAudioCommit,
    InputImageAppend,
    InputVideoAppend,
    InputVideoClear,
)
from server.events import Picture as Entry
from server.media.jobs import (
    CloseStream,
    Decoded,
    DecodedFrame,
    FaultCode,
    MediaFault,
    MediaJob,
    Stills,
    StreamData,
)
from tests.server.driving import Call
from tests.server.fuzz import JPEG, PNG, WEBM
from tests.server.test_session import MANUAL, sound

DROPPED = MediaFault(FaultCode.DROPPED, "no time")


def camera(call: Call) -> list[int]:
    """Capture times of the frames kept, in ms."""
    return [frame.capture_sample // 16 for frame in call.session._turns.input.camera.frames]


def decode(call: Call, *results: Decoded) -> list[str]:
    for result in results:
        call.session.receive_decoded(result, call.now_ms)
    call.drain()
    return call.take()


def stream(call: Call, **members: object) -> MediaJob:
    call.send(InputVideoAppend(video=WEBM, format="video/webm", **members))  # type: ignore[arg-type]
    return call.session.media_to_decode()[-1]


def test_a_frame_stands_where_its_sender_says_else_now() -> None:
    call = Call()
    call.send(MANUAL, sound(1))
    call.send(InputImageAppend(image=JPEG, timestamp_ms=300), InputImageAppend(image=JPEG))
    assert camera(call) == [300, 998]


def test_a_picture_keeps_its_time_while_it_is_decoded() -> None:
    call = Call()
    call.now_ms = 1_000
    call.send(InputImageAppend(image=PNG))
    [job] = call.session.media_to_decode()
    assert isinstance(job, Stills)
    call.now_ms = 1_600
    assert decode(call, Decoded(job.key, (DecodedFrame(0, JPEG),), is_job_done=True)) == []
    assert camera(call) == [1_000]


def test_a_picture_decoded_after_the_first_sound_moves_to_its_clock() -> None:
    call = Call()
    call.now_ms = 5_000
    call.send(InputImageAppend(image=PNG), InputImageAppend(image=PNG, timestamp_ms=40))
    untimed, timed = call.session.media_to_decode()
    call.send(InputAudioAppend(audio=bytes(4_800)))
    decode(
        call,
        *(Decoded(j.key, (DecodedFrame(0, JPEG),), is_job_done=True) for j in (untimed, timed)),
    )
    assert camera(call)[0] == 0


@pytest.mark.parametrize("fault", [MediaFault(FaultCode.INVALID_IMAGE, "broken"), DROPPED])
def test_a_picture_that_cannot_be_decoded(fault: MediaFault) -> None:
    call = Call()
    call.send(InputVideoClear(), InputImageAppend(image=PNG))
    [job] = call.session.media_to_decode()
    said = "VideoDropped 1 late" if fault is DROPPED else "Error invalid_image -"
    assert decode(call, Decoded(job.key, is_job_done=True, fault=fault)) == [said]
    assert camera(call) == []


def test_pictures_that_wait_for_a_decoder_are_bounded() -> None:
    call = Call()
    call.send(InputVideoClear())
    events = call.send(*(InputImageAppend(image=PNG) for _ in range(65)))
    assert len(call.session.media_to_decode()) == 64
    assert events == ["VideoDropped 1 late"]


def test_clearing_forgets_what_is_being_decoded() -> None:
    call = Call()
    call.send(InputImageAppend(image=PNG))
    [job] = call.session.media_to_decode()
    assert call.send(InputVideoClear()) == ["VideoCleared"]
    decode(call, Decoded(job.key, (DecodedFrame(0, JPEG),), is_job_done=True))
    assert camera(call) == []


def test_a_sequence_of_pictures_ends_now_or_begins_where_it_says() -> None:
    call = Call()
    call.now_ms = 9_000
    entries = (Entry(len(JPEG), 0), Entry(len(JPEG), 1_000))
    call.send(InputVideoAppend(video=JPEG * 2, format="image/jpeg", frames=entries))
    call.send(
        InputVideoAppend(video=JPEG * 2, format="image/jpeg", frames=entries, start_ms=10_000)
    )
    assert camera(call) == [8_000, 9_000, 10_000, 11_000]
    call.send(InputVideoAppend(video=JPEG, format="image/jpeg", start_ms=12_000))
    assert camera(call)[-1] == 12_000


def test_a_sequence_of_other_pictures_is_refused() -> None:
    call = Call()
    entries = (Entry(len(PNG), 0),)
    odd = InputVideoAppend(event_id="e1", video=PNG, format="image/jpeg", frames=entries)
    assert call.send(odd) == ["Error invalid_image e1"]


def test_a_stream_stands_where_it_says_else_ends_now() -> None:
    call = Call()
    call.now_ms = 9_000
    job = stream(call, start_ms=2_000)
    decode(call, Decoded(job.key, (DecodedFrame(0, JPEG), DecodedFrame(500, JPEG))))
    assert camera(call) == [2_000, 2_500]
    job = stream(call, stream_id="b")
    decode(call, Decoded(job.key, (DecodedFrame(0, JPEG), DecodedFrame(1_000, JPEG))))
    assert camera(call) == [2_000, 2_500, 8_000, 9_000]


def test_sound_that_is_not_wanted_is_not_decoded() -> None:
    from server.events import SessionUpdate

    call = Call()
    call.send(SessionUpdate(session={"video": {"input": {"audio_track": "ignore", "fps": 1}}}))
    job = stream(call)
    assert isinstance(job, StreamData)
    assert (job.with_sound, job.fps) == (False, 1.0)


def test_a_new_stream_gives_up_the_oldest() -> None:
    call = Call()
    first = stream(call, stream_id="a")
    stream(call, stream_id="b")
    call.send(InputVideoAppend(video=WEBM, format="video/webm", stream_id="c"))
    assert call.session.media_to_decode()[0] == CloseStream(first.key)
    frames = (DecodedFrame(0, JPEG),)
    assert decode(call, Decoded(first.key, frames)) == []
    assert camera(call) == []


def test_files_of_their_own_are_streams_of_their_own() -> None:
    call = Call()
    jobs = [stream(call, standalone=True) for _ in range(2)]
    assert all(isinstance(job, StreamData) and job.is_new and job.is_last for job in jobs)
    assert jobs[0].key != jobs[1].key


def test_a_stream_nobody_had_time_for_begins_anew_with_its_next_chunk() -> None:
    call = Call()
    job = stream(call)
    assert decode(call, Decoded(job.key, is_job_done=True, fault=DROPPED)) == [
        "VideoDropped 1 late"
    ]
    call.send(InputVideoAppend(video=b"more", format="video/webm"))
    [job] = call.session.media_to_decode()
    assert isinstance(job, StreamData)
    assert job.is_new


def test_a_commit_says_how_many_frames_it_took_to_those_who_send_chunks() -> None:
    call = Call()
    call.send(MANUAL, InputVideoClear(), sound(0.1), InputImageAppend(image=JPEG), sound(1))
    assert call.send(InputAudioCommit())[1].startswith("VideoCommitted item_1 2 0 0 ")
