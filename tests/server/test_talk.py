"""`parley talk`: files in, a real worker process, an answer out; and what happens when something is wrong."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from server.cli import app
from server.supervisor import running_worker
from server.talk import Answer, Question, _commands, read_frames, read_question
from streaming.errors import ClientError, WorkerLost
from streaming.media import CHUNK_SAMPLES, LOOK_AHEAD_SAMPLES, VideoFrame
from streaming.packets import (
    AppendChunk,
    AppendPair,
    AudioDelta,
    DoneReason,
    OpenClip,
    SessionFailed,
    TextDelta,
    TurnDone,
    Usage,
)
from streaming.pcm import read_wav, write_wav

if TYPE_CHECKING:
    from collections.abc import Iterable

VOICE = Path(__file__).parent.parent / "streaming" / "one_two_three.wav"


def video_file(path: Path, seconds: int, rate: int = 5) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(seconds * rate):
            picture = np.full((48, 64, 3), 40 * i % 256, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["talk", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_question_is_answered_by_a_real_worker(checkpoint_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "reply.wav"
    video = video_file(tmp_path / "clip.mp4", seconds=2)
    limits = ("--max-text-tokens", 6, "--max-codes", 30, "--fast", "--dtype", "fp32")
    code, output = run(VOICE, "--model", checkpoint_dir, "--video", video, "--out", out, *limits)
    assert code == 0, output
    pcm, rate = read_wav(out.read_bytes())
    assert rate == 24_000
    assert len(pcm) // 2 in range(480, 480 * 30 + 1)
    assert f"{len(pcm) / 2 / rate:.2f} s of speech" in output
    assert "first sound" in output


def test_a_model_that_cannot_be_loaded_ends_in_one_error(tmp_path: Path) -> None:
    code, output = run(VOICE, "--model", tmp_path / "nothing", "--out", tmp_path / "reply.wav")
    assert code == 2
    assert "the worker ended before it was ready" in output
    assert not (tmp_path / "reply.wav").exists()


@pytest.mark.parametrize("content", [None, b"this is no sound"])
def test_a_question_that_is_no_sound_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "question.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClientError, match="invalid_audio"):
        read_question(path, None, "")


def test_a_video_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video at all")
    with pytest.raises(ClientError, match="invalid_video"):
        read_question(VOICE, path, "")


def test_a_video_gives_two_frames_a_second_on_the_input_clock(tmp_path: Path) -> None:
    frames = list(read_frames(video_file(tmp_path / "clip.mp4", seconds=3)))
    # At 5 frames a second the first frame at or after each half second is 0, 0.6, 1.0, 1.6 …
    assert [f.capture_sample for f in frames] == [0, 9600, 16_000, 25_600, 32_000, 41_600]
    assert all(f.jpeg.startswith(b"\xff\xd8") for f in frames)


def test_a_question_leaves_as_a_gateway_would_send_it() -> None:
    num_samples = CHUNK_SAMPLES + 10_000
    frames = tuple(VideoFrame(k * 8000, b"jpeg") for k in range(5))
    sent = list(_commands(Question(bytes(2 * num_samples), frames)))
    names = [type(command).__name__ for _, command in sent]
    assert names == ["OpenClip", *["AppendPair"] * 2, "AppendChunk", "AppendPair", "AppendChunk"]
    due = [sample for sample, _ in sent]
    assert due == sorted(due)
    chunks = [c.chunk for _, c in sent if isinstance(c, AppendChunk)]
    assert [c.is_last for c in chunks] == [False, True]
    assert sum(len(c.pcm) for c in chunks) == 2 * num_samples
    assert due[names.index("AppendChunk")] >= CHUNK_SAMPLES + LOOK_AHEAD_SAMPLES
    assert isinstance(sent[0][1], OpenClip)
    assert isinstance(sent[1][1], AppendPair)


def played(*packets: tuple[float, int]) -> Answer:
    """Sound packets as (arrival in ms, duration in ms)."""
    answer, start = Answer(), 0
    for now_ms, duration_ms in packets:
        answer.take(AudioDelta("s", 0, start, bytes(48 * duration_ms)), now_ms)
        start += 24 * duration_ms
    return answer


@pytest.mark.parametrize(
    ("packets", "underruns"),
    [
        ([(100, 240), (300, 240)], 0),
        ([(100, 240), (340, 240)], 0),
        ([(100, 240), (341, 240)], 1),
        ([(100, 40), (200, 40), (300, 40)], 2),
    ],
)
def test_a_packet_after_the_last_one_was_played_is_an_underrun(
    packets: Iterable[tuple[float, int]], underruns: int
) -> None:
    assert played(*packets).num_underruns == underruns


def test_figures_are_those_of_the_first_of_each_kind() -> None:
    answer = Answer()
    answer.take(TextDelta("s", 0, "He"), 12)
    answer.take(TextDelta("s", 0, "llo"), 20)
    answer.take(AudioDelta("s", 0, 0, bytes(480)), 70)
    answer.take(TurnDone("s", 0, DoneReason.COMPLETED, Usage()), 90)
    assert (answer.text, answer.first_text_ms, answer.first_sound_ms) == ("Hello", 12, 70)
    assert (answer.done_ms, answer.seconds) == (90, 0.01)
    with pytest.raises(WorkerLost, match="full"):
        answer.take(SessionFailed("s", "no_place", "full"), 0)


def test_a_worker_that_dies_at_once_is_told(tmp_path: Path) -> None:
    async def start() -> None:
        async with running_worker(["--no-such-option"], lambda loading: None):
            pass

    with pytest.raises(WorkerLost, match="exit status 2"):
        asyncio.run(start())


def test_the_written_file_is_what_was_heard(tmp_path: Path) -> None:
    pcm = np.arange(-500, 500, dtype="<i2").tobytes()
    assert read_wav(write_wav(pcm, 24_000)) == (pcm, 24_000)
