"""A Pipecat pipeline with OpenAIRealtimeLLMService: its microphone is a file, its loudspeaker a clock.

    python program.py SCENE URL KEY turn.pcm

Runs in Pipecat's own environment and so imports nothing of ours; it tells what happened in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from loguru import logger
from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InputImageRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    OutputAudioRawFrame,
    StartFrame,
    TranscriptionFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import WorkerRunner
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams  # noqa: TC002  # it is inspected
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

RATE = 24_000
FRAME = RATE // 50
LIMIT_S = 60


def tell(kind: str, **members: object) -> None:
    print(json.dumps({"kind": kind, **members}), flush=True)  # noqa: T201  # it is a program


class Loudspeaker(BaseOutputTransport):
    """Plays by the clock."""

    def __init__(self) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_sample_rate=RATE))
        self.num_samples = 0
        self._more = asyncio.Event()

    async def has_played(self, num_samples: int) -> None:
        while self.num_samples < num_samples:
            self._more.clear()
            await self._more.wait()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self.num_samples += frame.num_frames
        self._more.set()
        await asyncio.sleep(frame.num_frames / RATE)
        return True


class Watcher(BaseObserver):
    """Tells what passes, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: asyncio.Queue[str] = asyncio.Queue()
        self.transcripts: asyncio.Queue[str] = asyncio.Queue()
        self._seen: set[int] = set()
        self._words: list[str] = []

    async def on_push_frame(self, pushed: FramePushed) -> None:
        frame: Frame = pushed.frame
        if frame.id in self._seen:
            return
        self._seen.add(frame.id)
        match frame:
            case ErrorFrame():
                tell("error", text=frame.error)
            case UserStartedSpeakingFrame() | InterruptionFrame():
                tell(type(frame).__name__)
            case TranscriptionFrame():
                self.transcripts.put_nowait(frame.text)
            case TTSTextFrame():
                self._words.append(frame.text)
            case LLMFullResponseEndFrame():
                self.replies.put_nowait("".join(self._words))
                self._words.clear()


async def get_time(params: FunctionCallParams) -> None:
    tell("tool", place=params.arguments["place"])
    await params.result_callback({"time": "12:00"})


TOOL = FunctionSchema("get_time", "The time at a place", {"place": {"type": "string"}}, ["place"])


async def main(scene: str, url: str, key: str, turn: bytes) -> None:
    tools = ToolsSchema([TOOL]) if scene == "tool" else None
    llm = OpenAIRealtimeLLMService(
        api_key=key,
        base_url=url,
        settings=OpenAIRealtimeLLMService.Settings(
            model="qwen2.5-omni",
            system_instruction="Be brief.",
            session_properties=SessionProperties(
                audio=AudioConfiguration(input=AudioInput(transcription=InputAudioTranscription()))
            ),
        ),
    )
    llm.register_function("get_time", get_time)
    opening = "Please count." if scene == "interrupted" else "Good morning."
    messages = [{"role": "user", "content": opening}]
    context = LLMContext(messages, tools) if tools else LLMContext(messages)
    aggregators = LLMContextAggregatorPair(context)
    loudspeaker, watcher = Loudspeaker(), Watcher()
    pipeline = Pipeline([aggregators.user(), llm, loudspeaker, aggregators.assistant()])
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
        observers=[watcher],
        cancel_on_idle_timeout=False,
    )

    async def say() -> None:
        for start in range(0, len(turn), 2 * FRAME):
            piece = turn[start : start + 2 * FRAME]
            await worker.queue_frame(InputAudioRawFrame(piece, RATE, 1))
            await asyncio.sleep(FRAME / RATE)
        await asyncio.wait_for(watcher.transcripts.get(), LIMIT_S)

    async def reply() -> str:
        text = await asyncio.wait_for(watcher.replies.get(), LIMIT_S)
        tell("reply", text=text)
        return text

    async def play() -> None:
        await worker.queue_frame(LLMRunFrame())
        match scene:
            case "spoken":
                await reply()  # the agent greets first
                await say()
                await reply()
                picture = InputImageRawFrame(bytes(3 * 224 * 168), (224, 168), "RGB")
                await worker.queue_frame(picture)
                await say()
                await reply()
            case "interrupted":
                await loudspeaker.has_played(RATE)
                await say()
                await reply()
                await reply()
            case "tool":
                await reply()
                await say()
                while "noon" not in await reply():
                    pass
        await asyncio.sleep(0.5)  # the last words are still being played
        tell("context", messages=json.loads(json.dumps(context.get_messages(), default=str)))
        tell("done", num_samples=loudspeaker.num_samples)
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), play())


if __name__ == "__main__":
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    _, scene, url, key, file = sys.argv
    asyncio.run(asyncio.wait_for(main(scene, url, key, Path(file).read_bytes()), 2 * LIMIT_S))
