"""The least of a realtime server around somebody who answers: what a peer needs to be called like any other.

Turns are detected with our own detector and its public defaults, so that a peer differs in how it answers only. One
conversation is computed at a time, as in any script around `generate`; others wait.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import pybase64
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from streaming.pcm import Encoding, SoundFormat, SoundReader
from streaming.silero import SpeechModel, hear, model_path
from streaming.vad import SpeechListener, SpeechStarted, VadSettings

if TYPE_CHECKING:
    from collections.abc import Generator

Event = dict[str, Any]

INPUT_RATE = 16_000
OUTPUT_RATE = 24_000
DELTA_BYTES = 2 * OUTPUT_RATE // 5
"""200 ms: sound that comes as a whole is sent in pieces, as one message may not be endless."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the reply's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Sound:
    """A piece of the reply's sound: int16 mono at 24 kHz."""

    pcm: bytes


class Answerer(Protocol):
    """Who answers: one turn at a time, in a thread of its own."""

    def answer(self, pcm: bytes, history: list[Event]) -> Generator[Text | Sound]:
        """Answer speech, int16 mono at 16 kHz; is closed between two pieces when the caller interrupts."""
        ...


@dataclass(slots=True)
class Hearing:
    """Turn detection of one call: appended sound in, turns out."""

    model: SpeechModel
    settings: VadSettings = field(default_factory=VadSettings)
    reader: SoundReader = field(
        default_factory=lambda: SoundReader(SoundFormat(Encoding.PCM16, OUTPUT_RATE))
    )
    pcm: bytearray = field(default_factory=bytearray)
    """Everything since the first sample; a bench does not last for hours."""
    start_sample: int = 0
    is_automatic: bool = True
    listener: SpeechListener = field(init=False)

    def __post_init__(self) -> None:
        self.listener = SpeechListener(self.settings)

    def push(self, received: bytes) -> list[tuple[str, int]]:
        """Return what happened: `started` or `stopped`, and the sample."""
        new = self.reader.push(received)
        self.pcm += new
        if not self.is_automatic:
            return []
        self.listener.push(new)
        while hear([self.listener], self.model):
            pass
        happened = []
        for event in self.listener.take_events():
            if isinstance(event, SpeechStarted):
                self.start_sample = event.at_sample
                happened.append(("started", event.at_sample))
            else:
                happened.append(("stopped", event.at_sample))
        return happened

    def turn(self, end_sample: int | None = None) -> bytes:
        """The sound of the turn that ends here."""
        end = len(self.pcm) // 2 if end_sample is None else end_sample
        turn = bytes(self.pcm[2 * self.start_sample : 2 * end])
        self.start_sample = end
        return turn


class Call:
    """One connection."""

    def __init__(
        self, link: ServerConnection, answerer: Answerer, turns: asyncio.Lock, model: SpeechModel
    ) -> None:
        self._link = link
        self._answerer = answerer
        self._turns = turns
        self._hearing = Hearing(model)
        self._ids = itertools.count()
        self._answering: asyncio.Task[None] | None = None
        self._is_cancelled = threading.Event()
        self._tasks: asyncio.TaskGroup
        self._turn = b""

    async def hold(self) -> None:
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._send("session.created", session=self._session())
                async for message in self._link:
                    await self._take(_parsed(message))
                self._is_cancelled.set()
        except* ConnectionClosed:
            self._is_cancelled.set()

    async def _take(self, event: Event) -> None:
        match event["type"]:
            case "session.update":
                self._configure(event["session"])
                await self._send("session.updated", session=self._session())
            case "input_audio_buffer.append":
                for what, sample in self._hearing.push(event["audio"]):
                    await self._heard(what, sample)
            case "input_audio_buffer.commit":
                self._turn = self._hearing.turn()
                await self._send("input_audio_buffer.committed", item_id=self._id("item"))
            case "response.create":
                self._respond(self._turn)
            case "response.cancel":
                self._is_cancelled.set()

    def _configure(self, session: Event) -> None:
        sound = session.get("audio", {}).get("input", {})
        if rate := sound.get("format", {}).get("rate"):
            self._hearing.reader = SoundReader(SoundFormat(Encoding.PCM16, rate))
        if "turn_detection" in sound:
            detection = sound["turn_detection"]
            self._hearing.is_automatic = detection is not None
            silence_ms = (detection or {}).get("silence_duration_ms")
            if silence_ms:
                self._hearing.listener = SpeechListener(
                    replace(self._hearing.settings, silence_duration_ms=silence_ms)
                )

    async def _heard(self, what: str, sample: int) -> None:
        milliseconds = sample * 1000 // INPUT_RATE
        if what == "started":
            self._is_cancelled.set()
            await self._send(
                "input_audio_buffer.speech_started", audio_start_ms=milliseconds, item_id="item_in"
            )
        else:
            await self._send(
                "input_audio_buffer.speech_stopped", audio_end_ms=milliseconds, item_id="item_in"
            )
            self._respond(self._hearing.turn(sample))

    def _respond(self, turn: bytes) -> None:
        self._is_cancelled = cancelled = threading.Event()
        self._tasks.create_task(self._answer(turn, cancelled), name="answer")

    async def _answer(self, turn: bytes, cancelled: threading.Event) -> None:
        response, item = self._id("resp"), self._id("item")
        await self._send("response.created", response=_response(response, "in_progress"))
        await self._send(
            "response.output_item.added", response_id=response, output_index=0, item={"id": item}
        )
        place = {"response_id": response, "item_id": item, "output_index": 0, "content_index": 0}
        async with self._turns:
            pieces = self._answerer.answer(turn, [])
            while not cancelled.is_set():
                piece = await asyncio.to_thread(next, pieces, None)
                if piece is None:
                    break
                await self._say(piece, place, cancelled)
            await asyncio.to_thread(pieces.close)
        status = "cancelled" if cancelled.is_set() else "completed"
        await self._send("response.done", response=_response(response, status))

    async def _say(self, piece: Text | Sound, place: Event, cancelled: threading.Event) -> None:
        if isinstance(piece, Text):
            await self._send("response.output_audio_transcript.delta", delta=piece.text, **place)
            return
        for start in range(0, len(piece.pcm), DELTA_BYTES):
            if not cancelled.is_set():
                delta = pybase64.b64encode(piece.pcm[start : start + DELTA_BYTES]).decode()
                await self._send("response.output_audio.delta", delta=delta, **place)

    async def _send(self, kind: str, **fields: object) -> None:
        event = {"type": kind, "event_id": self._id("event")} | fields
        await self._link.send(json.dumps(event))

    def _id(self, kind: str) -> str:
        return f"{kind}_{next(self._ids)}"

    def _session(self) -> Event:
        return {"type": "realtime", "object": "realtime.session", "id": "sess_0"}


def _parsed(message: str | bytes) -> Event:
    if isinstance(message, bytes):
        head, _, payload = message.partition(b"\n")
        return json.loads(head) | {"audio": payload}
    event: Event = json.loads(message)
    if "audio" in event:
        event["audio"] = pybase64.b64decode(event["audio"])
    return event


def _response(response_id: str, status: str) -> Event:
    return {
        "id": response_id,
        "object": "realtime.response",
        "status": status,
        "status_details": None,
    }


async def run_server(
    answerer: Answerer, host: str, port: int, ready: asyncio.Future[int] | None = None
) -> None:
    """Serve until cancelled; `ready` is given the port."""
    model = SpeechModel(model_path())
    turns = asyncio.Lock()

    async def hold(link: ServerConnection) -> None:
        await Call(link, answerer, turns, model).hold()

    async with serve(hold, host, port, compression=None, max_size=None) as server:
        bound = int(next(iter(server.sockets)).getsockname()[1])
        if ready is not None:
            ready.set_result(bound)
        await server.serve_forever()
