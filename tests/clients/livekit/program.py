"""A LiveKit agent without a room: its microphone is a file, its loudspeaker a clock.

    python program.py SCENE URL KEY turn.pcm

Runs in LiveKit's own environment and so imports nothing of ours; it tells what happened in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from livekit import rtc
from livekit.agents import Agent, AgentSession, function_tool
from livekit.agents.voice.io import (
    AudioInput,
    AudioOutput,
    AudioOutputCapabilities,
    VideoInput,
)
from livekit.plugins.openai.realtime import RealtimeModel

RATE = 24_000
FRAME = RATE // 20
LIMIT_S = 60


def tell(kind: str, **members: object) -> None:
    print(json.dumps({"kind": kind, **members}), flush=True)  # noqa: T201  # it is a program


class Microphone(AudioInput):
    """Gives what is said, in real time."""

    def __init__(self) -> None:
        super().__init__(label="file")
        self._frames: asyncio.Queue[rtc.AudioFrame] = asyncio.Queue()

    def say(self, pcm: bytes) -> None:
        for start in range(0, len(pcm), 2 * FRAME):
            piece = pcm[start : start + 2 * FRAME]
            self._frames.put_nowait(rtc.AudioFrame(piece, RATE, 1, len(piece) // 2))

    async def __anext__(self) -> rtc.AudioFrame:
        frame = await self._frames.get()
        await asyncio.sleep(frame.duration)
        return frame


class Camera(VideoInput):
    """Shows black, five times a second."""

    def __init__(self) -> None:
        super().__init__(label="black")

    async def __anext__(self) -> rtc.VideoFrame:
        await asyncio.sleep(0.2)
        return rtc.VideoFrame(224, 168, rtc.VideoBufferType.RGBA, bytes(4 * 224 * 168))


class Loudspeaker(AudioOutput):
    """Plays by the clock."""

    def __init__(self) -> None:
        super().__init__(
            label="clock", capabilities=AudioOutputCapabilities(pause=False), sample_rate=RATE
        )
        self.num_samples = 0
        self._more = asyncio.Event()
        self._begun: float | None = None
        self._seconds = 0.0
        self._end: asyncio.TimerHandle | None = None

    async def has_played(self, num_samples: int) -> None:
        while self.num_samples < num_samples:
            self._more.clear()
            await self._more.wait()

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self.num_samples += frame.samples_per_channel
        self._more.set()
        if self._begun is None:
            self._begun = time.time()
            self.on_playback_started(created_at=self._begun)
        self._seconds += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._begun is not None:
            left = max(0.0, self._begun + self._seconds - time.time())
            self._end = asyncio.get_running_loop().call_later(left, self._finish, False)

    def clear_buffer(self) -> None:
        if self._begun is not None:
            self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        assert self._begun is not None
        if self._end is not None:
            self._end.cancel()
        played = min(time.time() - self._begun, self._seconds)
        self._begun, self._seconds, self._end = None, 0.0, None
        self.on_playback_finished(playback_position=played, interrupted=interrupted)


class Clerk(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="Be brief.")


class Timekeeper(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="Be brief.")

    @function_tool
    async def get_time(self, place: str) -> str:
        """The time at a place."""
        tell("tool", place=place)
        return "12:00"


async def main(scene: str, url: str, key: str, turn: bytes) -> None:
    model = RealtimeModel(base_url=url, api_key=key, model="qwen2.5-omni")
    microphone, loudspeaker = Microphone(), Loudspeaker()
    replies: asyncio.Queue[object] = asyncio.Queue()
    # Without an echo canceller to wait for, it listens from the first word on.
    async with AgentSession(llm=model, aec_warmup_duration=None) as session:
        session.input.audio, session.output.audio = microphone, loudspeaker

        @session.on("conversation_item_added")
        def added(event: object) -> None:
            item = event.item  # type: ignore[attr-defined]
            tell(
                "item",
                role=getattr(item, "role", item.type),
                text=getattr(item, "text_content", None),
                interrupted=getattr(item, "interrupted", None),
            )
            if getattr(item, "role", "") == "assistant":
                replies.put_nowait(item)

        @session.on("user_input_transcribed")
        def transcribed(event: object) -> None:
            tell("transcript", text=event.transcript, is_final=event.is_final)  # type: ignore[attr-defined]

        @session.on("error")
        def failed(event: object) -> None:
            tell("error", text=str(event))

        @session.on("user_state_changed")
        def user(event: object) -> None:
            tell("user", state=event.new_state)  # type: ignore[attr-defined]

        @session.on("agent_state_changed")
        def agent(event: object) -> None:
            tell("agent", state=event.new_state)  # type: ignore[attr-defined]

        await session.start(Timekeeper() if scene == "tool" else Clerk())

        async def reply() -> None:
            await asyncio.wait_for(replies.get(), LIMIT_S)

        match scene:
            case "greeting":
                await session.generate_reply(instructions="Good morning.")
            case "spoken":
                microphone.say(turn)
                await reply()
                await session.generate_reply(user_input="Good morning.")
            case "seen":
                session.input.video = Camera()
                microphone.say(turn)
                await reply()
            case "interrupted":
                session.generate_reply(user_input="Please count.")
                await loudspeaker.has_played(RATE)
                microphone.say(turn)
                await reply()
                await reply()
            case "tool":
                microphone.say(turn)
                await reply()
        tell("done", num_samples=loudspeaker.num_samples)
    await model.aclose()


if __name__ == "__main__":
    _, scene, url, key, file = sys.argv
    asyncio.run(asyncio.wait_for(main(scene, url, key, Path(file).read_bytes()), 2 * LIMIT_S))
