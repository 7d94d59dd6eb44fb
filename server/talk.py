"""`parley talk`: one conversation turn from files, through a real worker, in the terminal."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import av

from server.supervisor import running_worker
from streaming.chunker import Chunker
from streaming.errors import ClientError, WorkerLost
from streaming.media import (
    FRAMES_PER_SECOND,
    INPUT_SAMPLE_RATE,
    OUTPUT_SAMPLE_RATE,
    SAMPLE_BYTES,
    ClipPart,
    ClipStart,
    FramePair,
    MediaChunk,
    VideoFrame,
)
from streaming.packets import (
    AppendChunk,
    AppendPair,
    AppendText,
    AudioDelta,
    Command,
    CommitTurn,
    InputRefused,
    OpenClip,
    OpenSession,
    ReplyOptions,
    SessionFailed,
    SessionSettings,
    TextDelta,
    TurnDone,
)
from streaming.pcm import Encoding, SoundFormat, SoundReader, read_wav, write_wav

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streaming.packets import Loading, Reply
    from streaming.transport import AsyncLink

SESSION, TURN = "talk", 0
PIECE_SAMPLES = INPUT_SAMPLE_RATE // 10


@dataclass(frozen=True, slots=True)
class Question:
    """What is said and shown."""

    pcm: bytes
    """int16 at 16 kHz."""
    frames: tuple[VideoFrame, ...] = ()
    text: str = ""


@dataclass(slots=True)
class Answer:
    """What came back, and when: milliseconds after the question's last sample was sent."""

    text: str = ""
    pcm: bytearray = field(default_factory=bytearray)
    first_text_ms: float | None = None
    first_sound_ms: float | None = None
    done_ms: float = 0.0
    num_underruns: int = 0
    done: TurnDone | None = None

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_BYTES / OUTPUT_SAMPLE_RATE

    def take(self, reply: Reply, now_ms: float) -> None:
        match reply:
            case TextDelta():
                self.text += reply.text
                if self.first_text_ms is None:
                    self.first_text_ms = now_ms
            case AudioDelta():
                if self.first_sound_ms is None:
                    self.first_sound_ms = now_ms
                elif now_ms > self.first_sound_ms + 1000 * self.seconds:
                    self.num_underruns += 1  # a player that began with the first packet has run dry
                self.pcm += reply.pcm
            case TurnDone():
                self.done_ms, self.done = now_ms, reply
            case SessionFailed():
                raise WorkerLost(f"{reply.code}: {reply.message}")


def read_question(wav: Path, video: Path | None, text: str) -> Question:
    """Read the files.

    Raises:
        ClientError: a file is missing or not what it should be.
    """
    try:
        pcm, rate = read_wav(wav.read_bytes())
    except OSError as error:
        raise ClientError("invalid_audio", f"{wav} cannot be read: {error.strerror}") from None
    reader = SoundReader(SoundFormat(Encoding.PCM16, rate))
    sound = reader.push(pcm) + reader.flush()
    frames = tuple(read_frames(video)) if video else ()
    return Question(sound, frames, text)


def read_frames(video: Path) -> Iterator[VideoFrame]:
    """Two frames a second of a video file, as JPEG, placed on the input clock.

    Raises:
        ClientError: no video file.
    """
    try:
        with av.open(str(video)) as container:
            due = 0.0
            for frame in container.decode(video=0):
                if frame.time is None or frame.time < due:
                    continue
                due += 1 / FRAMES_PER_SECOND
                jpeg = io.BytesIO()
                frame.to_image().save(jpeg, "JPEG", quality=85)  # type: ignore[no-untyped-call]
                yield VideoFrame(round(frame.time * INPUT_SAMPLE_RATE), jpeg.getvalue())
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ClientError("invalid_video", f"{video} cannot be read as video: {error}") from None


async def talk(
    question: Question,
    worker_arguments: Sequence[str],
    *,
    settings: SessionSettings,
    options: ReplyOptions,
    is_paced: bool,
    on_loading: Callable[[Loading], None],
    on_reply: Callable[[Reply], None],
) -> Answer:
    """Hold the turn. `is_paced` feeds the question in real time, as a microphone would.

    Raises:
        WorkerLost: the worker ended, or refused the session.
    """
    async with running_worker(worker_arguments, on_loading) as (link, _):
        link.send(OpenSession(SESSION, settings))
        asked_at: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_ask(link, question, options, is_paced, asked_at), name="ask")
            return await _listen(link, asked_at, on_reply)


async def _ask(
    link: AsyncLink[Reply],
    question: Question,
    options: ReplyOptions,
    is_paced: bool,
    asked_at: list[float],
) -> None:
    begun = time.monotonic()
    for due_sample, command in _commands(question):
        if is_paced:
            await asyncio.sleep(begun + due_sample / INPUT_SAMPLE_RATE - time.monotonic())
        link.send(command)
    asked_at.append(time.monotonic())
    if question.text:
        link.send(AppendText(SESSION, TURN, question.text))
    link.send(CommitTurn(SESSION, TURN, options))


def _commands(question: Question) -> Iterator[tuple[int, Command]]:
    """What a gateway would send, and at which input sample."""
    chunker, frames = Chunker(), list(question.frames)
    chunker.open(0)
    step = PIECE_SAMPLES * SAMPLE_BYTES
    for start in range(0, len(question.pcm), step):
        now = start // SAMPLE_BYTES + PIECE_SAMPLES
        while frames and frames[0].capture_sample <= now:
            chunker.add_frame(frames.pop(0), now)
        for part in chunker.push(question.pcm[start : start + step]):
            yield now, _command(part)
    for part in chunker.close():
        yield len(question.pcm) // SAMPLE_BYTES, _command(part)


def _command(part: ClipPart) -> Command:
    match part:
        case ClipStart():
            return OpenClip(SESSION, TURN, part)
        case FramePair():
            return AppendPair(SESSION, TURN, part)
        case MediaChunk():
            return AppendChunk(SESSION, TURN, part)


async def _listen(
    link: AsyncLink[Reply], asked_at: list[float], on_reply: Callable[[Reply], None]
) -> Answer:
    answer = Answer()
    while answer.done is None:
        reply = await link.receive()
        if reply is None:
            raise WorkerLost("the worker ended in the middle of the turn")
        now_ms = 1000 * (time.monotonic() - asked_at[0]) if asked_at else 0.0
        answer.take(reply, now_ms)
        if isinstance(reply, TextDelta | InputRefused | TurnDone):
            on_reply(reply)
    return answer


def write_answer(answer: Answer, path: Path) -> None:
    path.write_bytes(write_wav(bytes(answer.pcm), OUTPUT_SAMPLE_RATE))
