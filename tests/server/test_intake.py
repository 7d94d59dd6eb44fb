"""Clients' items to what the model is told, at once or when a decoder has answered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from server.context import Awaited, Picture, Words
from server.dialect import Dialect
from server.intake import SHORTEST_SAMPLES, Intake, make_clip
from server.items import InputAudio, InputImage, InputText, InputVideo, SystemMessage, UserMessage
from server.media.jobs import Decoded, DecodedFrame, FaultCode, MediaFault, MediaType, StreamData
from server.settings import Settings
from streaming.errors import ClientError
from streaming.media import ClipKind, ClipStart, FramePair, MediaChunk
from tests.server.driving import VOICES
from tests.server.fuzz import JPEG, PNG

if TYPE_CHECKING:
    from server.items import UserPart
    from server.media.jobs import MediaJob
    from streaming.media import ClipPart

SETTINGS = Settings.default(Dialect.DASHSCOPE, VOICES)  # 16 kHz: sound comes out as it went in


def intake() -> tuple[Intake, list[MediaJob]]:
    jobs: list[MediaJob] = []
    return Intake(lambda: f"job{len(jobs)}", jobs.append, 1_000), jobs


def message(*parts: UserPart) -> UserMessage:
    return UserMessage("u", list(parts))


def sound_of(parts: list[ClipPart]) -> bytes:
    return b"".join(part.pcm for part in parts if isinstance(part, MediaChunk))


def test_parts_come_in_order() -> None:
    taken, jobs = intake()
    pcm = b"\1\2" * SHORTEST_SAMPLES
    pieces = taken.read(
        message(
            InputText("a"),
            InputText(""),
            InputImage(JPEG),
            InputAudio(encoded=pcm),
            InputImage(PNG),
        ),
        SETTINGS,
    )
    assert pieces[:3] == [Words("user", "a"), Picture(JPEG), ClipStart(ClipKind.SOUND, 0)]
    assert pieces[3:] == [MediaChunk(0, 0, pcm, True), Awaited("job0", len(PNG))]
    assert [job.key for job in jobs] == ["job0"]


def test_media_are_kept_once() -> None:
    taken, _ = intake()
    item = message(InputImage(JPEG), InputAudio(encoded=bytes(3_200)))
    taken.read(item, SETTINGS)
    assert item.content == [InputImage(None), InputAudio()]


def test_other_items_bring_nothing() -> None:
    taken, _ = intake()
    assert taken.read(SystemMessage("s", [InputText("x")]), SETTINGS) == []
    assert (
        taken.read(message(InputAudio(), InputImage(None), InputVideo(None, "video/mp4")), SETTINGS)
        == []
    )


def test_too_much_sound_is_refused_before_it_is_read() -> None:
    taken, _ = intake()
    with pytest.raises(ClientError) as fault:
        taken.read(message(InputText(""), InputAudio(encoded=bytes(2 * 16_017))), SETTINGS, "item")
    assert fault.value.param == "item.content.1.audio"


def test_sound_too_short_to_be_heard_is_followed_by_silence() -> None:
    assert sound_of(make_clip(b"\1\2", [])) == b"\1\2" + bytes(2 * SHORTEST_SAMPLES - 2)
    assert make_clip(b"", []) == []


def test_a_film_becomes_a_clip_once_it_is_decoded() -> None:
    taken, jobs = intake()
    frames = replace(SETTINGS.frames, fps=1.0)
    pieces = taken.read(message(InputVideo(b"film", "video/mp4")), replace(SETTINGS, video=frames))
    assert jobs == [StreamData("job0", MediaType.MP4, b"film", True, True, fps=1.0)]
    shown = (DecodedFrame(0, b"a"), DecodedFrame(1_000, b"b"))
    assert taken.receive(Decoded("job0", shown[:1], b"\1\2" * 8_000)) is None
    assert taken.receive(Decoded("job0", shown[1:], b"\3\4" * 8_000)) is None
    assert pieces == [Awaited("job0", 4)]
    taken.receive(Decoded("job0", is_job_done=True))
    assert pieces[0] == ClipStart(ClipKind.VIDEO_WITH_SOUND, 0)
    assert [p.frames[0].jpeg for p in pieces if isinstance(p, FramePair)] == [b"a", b"b"]
    sound = b"".join(p.pcm for p in pieces if isinstance(p, MediaChunk))
    assert sound == b"\1\2" * 8_000 + b"\3\4" * 8_000 + bytes(
        2 * 8_000
    )  # as long as the last frame


def test_a_film_without_sound_is_one_without_sound() -> None:
    parts = make_clip(b"", [DecodedFrame(0, b"a"), DecodedFrame(2_500, b"b")])
    assert parts[0] == ClipStart(ClipKind.VIDEO, 0)
    assert sound_of(parts) == b""


def test_what_cannot_be_decoded_is_left_out() -> None:
    taken, _ = intake()
    pieces = taken.read(message(InputImage(PNG), InputText("b")), SETTINGS)
    fault = MediaFault(FaultCode.INVALID_IMAGE, "broken")
    assert taken.receive(Decoded("job0", is_job_done=True, fault=fault)) == fault
    assert pieces == [Words("user", "b")]
    assert taken.receive(Decoded("job0", is_job_done=True, fault=fault)) is None
