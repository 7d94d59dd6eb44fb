"""Driving an engine by hand: commands for turns, a loop with a scripted clock, and what came out."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from PIL import Image

from model.reply import AudioDelta as ChatAudio
from model.reply import CodeDelta
from model.reply import ReplyOptions as ChatOptions
from model.reply import TextDelta as ChatText
from model.sampling import TALKER_SAMPLING, Sampling
from streaming.media import (
    CHUNK_SAMPLES,
    LOOK_AHEAD_SAMPLES,
    ClipKind,
    ClipStart,
    FramePair,
    MediaChunk,
    VideoFrame,
)
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendPair,
    AppendText,
    AudioDelta,
    CommitTurn,
    OpenClip,
    OpenSession,
    ReplyOptions,
    SamplingOptions,
    SessionSettings,
    TextDelta,
    TurnDone,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from model.chat import Chat
    from streaming.engine.engine import Engine
    from streaming.engine.runner import StepOutput
    from streaming.engine.scheduler import StepPlan
    from streaming.packets import Command, Reply

SYSTEM = "Be kind."
MAX_TEXT, MAX_CODES = 10, 40
GREEDY = ReplyOptions(
    thinker=SamplingOptions(temperature=0),
    talker=SamplingOptions(temperature=0, repetition_penalty=1.05),
    max_text_tokens=MAX_TEXT,
    max_codes=MAX_CODES,
)
Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Said:
    """What a user says in one turn."""

    text: str = ""
    sound: np.ndarray[tuple[int], np.dtype[np.int16]] | None = None
    image: bytes | None = None
    pairs: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    """Seconds of the clip and the frames of each."""


def levels(pcm: bytes) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.frombuffer(pcm, np.int16).astype(np.int32)


def speech(seconds: float, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Noise whose level rises and falls like speech."""
    n = int(16_000 * seconds)
    level = np.abs(np.sin(np.linspace(0, 9 * seconds, n)))
    noise = np.random.default_rng(seed).standard_normal(n) * level * 3000
    return noise.astype(np.int16)


def picture(height: int, width: int, seed: int = 0) -> bytes:
    """A picture as a PNG, which loses nothing."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def pixels(encoded: bytes) -> Picture:
    return np.array(Image.open(io.BytesIO(encoded)))


def commands_of(said: Said, session_id: str, turn_id: int) -> Iterator[Command]:
    """The input of a turn as the gateway would send it, without the commit."""
    if said.sound is not None or said.pairs:
        yield from clip_of(said, session_id, turn_id)
    if said.image is not None:
        yield AppendImage(session_id, turn_id, said.image)
    if said.text:
        yield AppendText(session_id, turn_id, said.text)


def clip_of(said: Said, session_id: str, turn_id: int) -> Iterator[Command]:
    kind = ClipKind.SOUND
    if said.pairs:
        kind = ClipKind.VIDEO if said.sound is None else ClipKind.VIDEO_WITH_SOUND
    yield OpenClip(session_id, turn_id, ClipStart(kind, 0))
    sound = np.zeros(0, np.int16) if said.sound is None else said.sound
    pairs = [FramePair(i, tuple(VideoFrame(0, f) for f in frames)) for i, frames in said.pairs]
    start, index = 0, 0
    while True:
        end = CHUNK_SAMPLES * (index + 1) + LOOK_AHEAD_SAMPLES
        is_last = end >= len(sound)
        for pair in pairs:
            if pair.chunk_index == index or (is_last and pair.chunk_index > index):
                yield AppendPair(session_id, turn_id, pair)
        pcm = sound[start:end].tobytes()
        yield AppendChunk(session_id, turn_id, MediaChunk(index, start, pcm, is_last))
        if is_last:
            return
        start, index = end, index + 1


@dataclass
class Answer:
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    pcm: bytes = b""
    done: TurnDone | None = None


def chat_answer(chat: Chat, said: Said, options: ReplyOptions = GREEDY) -> Answer:
    """The same turn in the readable one-conversation form."""
    give(chat, said)
    answer = Answer()
    parts = []
    for delta in chat.reply(chat_options(options)):
        match delta:
            case ChatText():
                answer.tokens.append(delta.token_id)
                answer.text += delta.text
            case CodeDelta():
                answer.codes.append(delta.code)
            case ChatAudio():
                parts.append(delta.pcm)
    pcm = torch.cat(parts) if parts else torch.empty(0)
    answer.pcm = pcm.mul(32767).round().clamp(-32768, 32767).to(torch.int16).numpy().tobytes()
    return answer


def give(chat: Chat, said: Said) -> None:
    sound = None
    if said.sound is not None:
        sound = torch.from_numpy(said.sound.astype(np.float32) / 32768)
    if said.pairs:
        chat.open_video(with_sound=sound is not None)
        for _, frames in said.pairs:
            for frame in frames:
                chat.frame(pixels(frame))
        if sound is not None:
            chat.sound(sound)
        chat.close_video()
    elif sound is not None:
        chat.audio(sound, is_last=True)
    if said.image is not None:
        chat.image(pixels(said.image))
    if said.text:
        chat.text(said.text)


def chat_options(options: ReplyOptions) -> ChatOptions:
    assert options.thinker
    assert options.talker
    return ChatOptions(
        voice=options.voice,
        thinker=_sampling(options.thinker, Sampling(temperature=0)),
        talker=_sampling(options.talker, TALKER_SAMPLING),
        max_text_tokens=options.max_text_tokens or 1024,
        max_codes=options.max_codes or 4096,
        speech=options.speech,
        noise_seed=options.noise_seed,
    )


def _sampling(options: SamplingOptions, default: Sampling) -> Sampling:
    given = {k: v for k, v in msgspec.structs.asdict(options).items() if v is not None}
    return replace(default, **given)


def never_stop(engine: Engine) -> None:
    """Let the Talker speak up to the limit of codes; a random one often stops after the first."""
    assert engine.omni.config.talker is not None
    with torch.inference_mode():
        engine.runner._suppressed[list(engine.omni.config.talker.stop_ids)] = True


def record_plans(engine: Engine) -> list[StepPlan]:
    """Every plan that reaches the runner from now on, also those of the codec's thread."""
    plans: list[StepPlan] = []
    run, start = engine.runner.run, engine.runner.start_windows

    def recorded_run(plan: StepPlan) -> StepOutput:
        plans.append(plan)
        return run(plan)

    def recorded_start(plan: StepPlan) -> Future[list[bytes]]:
        plans.append(plan)
        return start(plan)

    engine.runner.run = recorded_run  # type: ignore[method-assign]
    engine.runner.start_windows = recorded_start  # type: ignore[method-assign]
    return plans


@dataclass
class Driver:
    """An engine, a clock that moves 10 ms per step, and everything that came out."""

    engine: Engine
    now_ms: float = 0.0
    replies: list[Reply] = field(default_factory=list)
    step_ms: float = 10.0
    _seen: dict[tuple[str, int], Answer] = field(default_factory=lambda: defaultdict(Answer))

    def open(self, session_id: str, system: str | None = SYSTEM) -> None:
        self.submit(OpenSession(session_id, SessionSettings(system)))

    def submit(self, *commands: Command) -> None:
        for command in commands:
            self.engine.submit(command, self.now_ms)

    def say(
        self, session_id: str, turn_id: int, said: Said, options: ReplyOptions = GREEDY
    ) -> None:
        self.submit(*commands_of(said, session_id, turn_id))
        self.submit(CommitTurn(session_id, turn_id, options))

    def step(self) -> list[Reply]:
        replies = self.engine.step(self.now_ms)
        self.now_ms += self.step_ms
        for reply in replies:
            self._take(reply)
        self.replies += replies
        return replies

    def run(self, limit: int = 20_000) -> None:
        """Until nothing is left to do, waiting for playbacks where replies are ahead of them."""
        for _ in range(limit):
            if not self.engine.has_work(self.now_ms):
                wake = self.engine.wake_ms(self.now_ms)
                if wake is None:
                    return
                self.now_ms = max(self.now_ms + 1, wake)
            self.step()
        raise AssertionError("the engine never came to rest")

    def answer(self, session_id: str, turn_id: int) -> Answer:
        """What came out of a turn; tokens and codes are read from the conversation."""
        answer = self._seen[session_id, turn_id]
        conversation = self.engine.conversations.get(session_id)
        for reply in conversation.replies if conversation else ():
            if reply.turn_id == turn_id:
                answer.tokens, answer.codes = list(reply.tokens), list(reply.codes)
        return answer

    def _take(self, reply: Reply) -> None:
        match reply:
            case TextDelta():
                self._seen[reply.session_id, reply.turn_id].text += reply.text
            case AudioDelta():
                answer = self._seen[reply.session_id, reply.turn_id]
                assert reply.start_sample == len(answer.pcm) // 2
                answer.pcm += reply.pcm
            case TurnDone():
                answer = self._seen[reply.session_id, reply.turn_id]
                assert answer.done is None, "a turn ended twice"
                answer.done = reply
