"""Driving a session by hand: client events, a fake worker and a scripted clock; what comes out, in few words."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from server.dialect import Dialect
from server.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    ErrorEvent,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    OutputAudioDelta,
    OutputItemAdded,
    OutputItemDone,
    ResponseCreated,
    ResponseDone,
    SessionCreated,
    SessionUpdated,
)
from server.identity import Identity
from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputText,
    OutputAudio,
    SystemMessage,
    UserMessage,
)
from server.limits import Limits
from server.session import Session
from server.settings import Settings, Voices
from streaming.silero import SpeechProgress
from streaming.vad import SpeechStarted, SpeechStopped, VadSettings
from tests.fakes import FakeWorker

if TYPE_CHECKING:
    from server.events import ClientEvent, ServerEvent
    from server.items import Item
    from streaming.packets import Command

IDENTITY = Identity("sess_1", "conv_1", "qwen2.5-omni", 1_760_000_000)
VOICES = Voices(("Chelsie", "Ethan"))


class Call:
    """A session, a worker that answers at once, and a client that reads at once unless told otherwise."""

    def __init__(
        self,
        worker: FakeWorker | None = None,
        dialect: Dialect = Dialect.GA,
        limits: Limits | None = None,
        *,
        is_reading: bool = True,
    ) -> None:
        self.now_ms = 0
        self.worker = worker or FakeWorker()
        self.is_reading = is_reading
        self.events: list[ServerEvent] = []
        self.sent: list[Command] = []
        self.heard: list[bytes | VadSettings | int] = []
        self._counts: dict[str, int] = defaultdict(int)
        self.session = Session(
            IDENTITY,
            Settings.default(dialect, VOICES, "Be kind."),
            dialect,
            self.worker.capacity,
            limits or Limits(),
            self.new_id,
            voices=VOICES,
        )
        self.drain()
        self.events.clear()

    def new_id(self, kind: str) -> str:
        self._counts[kind] += 1
        return f"{kind}_{self._counts[kind]}"

    def send(self, *events: ClientEvent) -> list[str]:
        """Have the client send events; return what came of it."""
        for event in events:
            self.session.receive_event(event, self.now_ms)
            self.drain()
        return self.take()

    def hear(self, until: int, *events: SpeechStarted | SpeechStopped) -> list[str]:
        self.session.receive_speech(SpeechProgress(until, events), self.now_ms)
        self.drain()
        return self.take()

    def starts(self, at: int, until: int | None = None) -> list[str]:
        return self.hear(until or at, SpeechStarted(at, at, 0.9))

    def stops(self, at: int) -> list[str]:
        return self.hear(at, SpeechStopped(at, at))

    def make(self, num_tokens: int = 0, num_samples: int = 0) -> list[str]:
        """Have the worker go on with its one running reply."""
        [session_id] = self.worker.running()
        self.worker.make(session_id, num_tokens, num_samples)
        self.drain()
        return self.take()

    def make_all(self) -> list[str]:
        for session_id in self.worker.running():
            self.worker.make_all(session_id)
        self.drain()
        return self.take()

    def wait(self, duration_ms: int) -> list[str]:
        """Let time pass, ticking when the session wants it."""
        end = self.now_ms + duration_ms
        while (wake := self.session.wake_ms) is not None and wake <= end:
            self.now_ms = max(wake, self.now_ms)
            self.session.tick(self.now_ms)
            self.drain()
            if self.session.wake_ms == wake:
                break
        self.now_ms = end
        return self.take()

    def lose_worker(self) -> list[str]:
        self.session.worker_lost(self.now_ms)
        self.drain()
        return self.take()

    def new_worker(self, worker: FakeWorker | None = None) -> list[str]:
        self.worker = worker or FakeWorker()
        self.session.worker_ready(self.worker.capacity, self.now_ms)
        self.drain()
        return self.take()

    def drain(self) -> None:
        """Carry commands and replies until both sides are quiet, then read."""
        while True:
            self.heard += self.session.speech_to_hear()
            commands = self.session.commands_to_send()
            for command in commands:
                self.sent.append(command)
                self.worker.submit(command)
            replies = self.worker.take_replies()
            if not commands and not replies:
                break
            for reply in replies:
                self.session.receive_reply(reply, self.now_ms)
        while self.is_reading and (event := self.session.take_event()) is not None:
            self.events.append(event)

    def read(self) -> list[str]:
        """Have a client that does not read by itself read everything."""
        while (event := self.session.take_event()) is not None:
            self.events.append(event)
        return self.take()

    def take(self) -> list[str]:
        events, self.events = self.events, []
        return [brief(event) for event in events]

    def knows(self) -> list[tuple[str, object]]:
        """What the model knows of the conversation."""
        session_id = self.session._responses.context.session_id
        return self.worker.knows(session_id) if session_id is not None else []


def brief(event: ServerEvent) -> str:
    """An event in few words."""
    name = type(event).__name__
    match event:
        case SessionCreated() | SessionUpdated():
            return name
        case ErrorEvent():
            return f"Error {event.code} {event.event_id or '-'}"
        case ItemAdded() | ItemDone():
            return f"{name} {event.previous_item_id or '-'} {show(event.item)}"
        case ItemRetrieved():
            return f"{name} {show(event.item)}"
        case ItemDeleted():
            return f"{name} {event.item_id}"
        case OutputItemAdded() | OutputItemDone():
            return f"{name} {event.response_id}.{event.output_index} {show(event.item)}"
        case ContentPartAdded() | ContentPartDone():
            return f"{name} {event.item_id} {event.part_type} {event.text!r}"
        case OutputAudioDelta():
            return f"{name} {event.item_id} {len(event.pcm)}"
        case ArgumentsDelta():
            return f"{name} {event.call_id} {event.delta!r}"
        case ArgumentsDone():
            return f"{name} {event.call_id} {event.name} {event.arguments!r}"
        case ResponseCreated():
            return f"{name} {event.response.id} {event.response.status}"
        case ResponseDone():
            return f"{name} {event.response.id} {_done(event)}"
    values = [str(getattr(event, field)) for field in event.__dataclass_fields__]
    return " ".join([name, *values])


def _done(event: ResponseDone) -> str:
    view, details = event.response, event.response.status_details
    reason = f" {details.reason or details.error_code}" if details is not None else ""
    items = " ".join(item.id for item in view.output)
    return f"{view.status}{reason} [{items}]"


def show(item: Item) -> str:
    match item:
        case UserMessage() | SystemMessage() | AssistantMessage():
            kind = type(item).__name__.removesuffix("Message").lower()
            parts = ",".join(_part(part) for part in item.content)
            return f"{kind}:{item.id}[{parts}]{item.status}"
        case FunctionCall():
            return f"call:{item.id}:{item.call_id} {item.name}({item.arguments}){item.status}"
        case FunctionCallOutput():
            return f"output:{item.id}:{item.call_id} {item.output}"


def _part(part: object) -> str:
    if isinstance(part, InputAudio):
        return f"audio:{part.transcript}"
    if isinstance(part, OutputAudio):
        return f"said:{part.transcript}"
    if isinstance(part, InputText):
        return f"text:{part.text}"
    return type(part).__name__
