"""Reply: one response as the client sees it, from `response.created` to `response.done`.

    text ─▶ CallSplitter ─┬─ words ─▶ held ─▶ message item: transcript deltas, about two seconds ahead of the sound
                          └─ calls ─────────▶ function call items, once the message is closed
    sound ─▶ writer ────────────────────────▶ message item: audio deltas

Its events lie in the outbox until the client takes them. When it is stopped, what the client has not got is withdrawn,
and the message ends with what it has got.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from server.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    ItemAdded,
    ItemDone,
    OutputAudioDelta,
    OutputAudioDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    OutputTranscriptDelta,
    OutputTranscriptDone,
    ResponseCreated,
    ResponseDone,
    ResponseView,
)
from server.items import AssistantMessage, FunctionCall, OutputAudio, OutputText, snapshot
from server.journal import Origin, Record
from server.tools import Call, CallSplitter
from streaming.media import OUTPUT_SAMPLE_RATE, SAMPLE_BYTES
from streaming.packets import Usage
from streaming.pcm import SoundWriter
from streaming.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.events import ServerEvent, StatusDetails
    from server.identity import IdKind
    from server.items import Item, ItemStatus
    from server.journal import Journal
    from server.outbox import Outbox
    from server.settings import Settings

MAX_DELTA_SAMPLES = 400 * OUTPUT_SAMPLE_RATE // 1000
TEXT_LEAD_SECONDS = 2.0
SPOKEN_BYTES_PER_SECOND = 14.0
"""English; a syllable costs about as many bytes in Latin script as in Chinese."""
RATE_MARGIN = 1.25
"""Text must not fall behind a fast speaker."""


class ReplyState(Enum):
    QUEUED = auto()
    RUNNING = auto()
    """Committed to a worker."""
    CLOSING = auto()
    """Stopped; only `response.done` is missing, until the worker has said what it cost."""
    DONE = auto()


@dataclass(slots=True)
class SpokenRate:
    """Bytes of text per second of speech, learned from replies that were spoken to their end."""

    num_bytes: float = SPOKEN_BYTES_PER_SECOND * 2
    seconds: float = 2.0

    @property
    def bytes_per_second(self) -> float:
        return self.num_bytes / self.seconds

    def learn(self, num_bytes: int, num_samples: int) -> None:
        self.num_bytes += num_bytes
        self.seconds += num_samples / OUTPUT_SAMPLE_RATE


@dataclass(slots=True)
class Message:
    """The message item of a reply, as far as its events are in the outbox or with the client."""

    record: Record
    item: AssistantMessage
    output_index: int = 0
    text: str = ""
    num_samples: int = 0
    num_closed: int = 0
    """Closing events said."""
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where the items of a default-conversation response go."""

    journal: Journal
    after_id: str | None
    """The item that is answered."""


@dataclass(slots=True)
class Reply:
    """One response. Owned by `Responses`."""

    id: str
    settings: Settings
    outbox: Outbox
    new_id: Callable[[IdKind], str]
    rate: SpokenRate
    conversation_id: str | None
    place: Place | None
    """None: out of band."""
    metadata: dict[str, str] | None = None
    is_automatic: bool = False
    """The server began it, because a turn ended."""
    state: ReplyState = ReplyState.QUEUED
    turn: Turn | None = None
    session_id: str | None = None
    message: Message | None = None
    usage: Usage = field(default_factory=Usage)
    _splitter: CallSplitter = field(default_factory=CallSplitter)
    _held: str = ""
    _calls: list[Call] = field(default_factory=list)
    _items: list[Item] = field(default_factory=list)
    _writer: SoundWriter | None = None
    _origin: Origin | None = None

    # ---- from the worker

    def announce(self) -> None:
        self._say(ResponseCreated(self._view("in_progress")))

    def begin(self, session_id: str, turn_id: int) -> None:
        """The worker has been asked."""
        self.session_id = session_id
        self.turn = Turn(turn_id, 0)
        self.turn.commit()
        self._origin = Origin(session_id, turn_id)
        self.state = ReplyState.RUNNING

    def requeue(self) -> None:
        """The worker could not begin; ask it again later."""
        assert not self._items
        self.state, self.turn, self.session_id = ReplyState.QUEUED, None, None

    @property
    def num_samples(self) -> int:
        """Sound that was sent."""
        return self.message.num_samples if self.message is not None else 0

    @property
    def is_active(self) -> bool:
        return self.state is not ReplyState.DONE

    @property
    def is_shown(self) -> bool:
        """The client has got, or will get, an item of it."""
        return bool(self._items)

    def receive_text(self, text: str) -> None:
        assert self.turn is not None
        if self.turn.receive_text():
            self._take_found(self._splitter.push(text))

    def receive_audio(self, start_sample: int, pcm: bytes) -> None:
        """Raises RequestFailed if sound was lost or repeated on the way."""
        assert self.turn is not None
        if self.turn.receive_audio(start_sample, len(pcm) // SAMPLE_BYTES):
            self._speak(pcm)

    def finish(self, status: ItemStatus, usage: Usage, details: StatusDetails | None) -> None:
        """The worker has said all of it."""
        assert self.turn is not None
        self.turn.finish()
        self._take_found(self._splitter.flush())
        if self.message is not None:
            self._write(self._held)
            if self._writer is not None:
                self._say_audio(self.message, self._writer.flush())
            if status == "completed":
                self.rate.learn(len(self.message.text.encode()), self.message.num_samples)
        self._held = ""
        self.usage = usage
        self._say_all(self._close_message(status))
        for call in self._calls:
            self._say_call(call)
        self._calls.clear()
        self._say_done("completed" if status == "completed" else "incomplete", details)

    # ---- stopping

    def withdraw(self) -> None:
        """Take back what the client has not got yet, and close what is open: nothing more is said but `done`."""
        for event in reversed(self.outbox.withdraw(self.id)):
            self._unsay(event)
        self._held = ""
        self._calls.clear()
        # Calls that wait stay, but only behind the message.
        self.outbox.put_before_items(self._close_message("incomplete"), self.id)
        if self.turn is not None and not self.turn.is_over:
            self.turn.cancel()

    def say_stopped(self, details: StatusDetails) -> None:
        """Say `response.done` of what was withdrawn."""
        self._say_done("cancelled", details)

    def fail(self, details: StatusDetails) -> None:
        """End it here, through no fault of the client's; what was said stays said."""
        self._held = ""
        self._calls.clear()
        self._say_all(self._close_message("incomplete"))
        self._say_done("failed", details)

    # ---- words

    def _take_found(self, found: Iterable[str | Call]) -> None:
        for piece in found:
            if isinstance(piece, Call):
                self._take_call(piece)
            elif not self._has_call():  # words behind a call are not spoken
                self._held += piece
        self._release_text()

    def _has_call(self) -> bool:
        return bool(self._calls) or any(isinstance(item, FunctionCall) for item in self._items)

    def _take_call(self, call: Call) -> None:
        if self.message is not None or self._held:
            self._calls.append(call)
        else:
            self._say_call(call)

    def _release_text(self) -> None:
        """Say what is not too far ahead of the sound; without sound, everything."""
        if not self._held:
            return
        message = self._require_message()
        if not self.settings.speaks:
            self._write(self._held)
            return
        seconds = message.num_samples / OUTPUT_SAMPLE_RATE + TEXT_LEAD_SECONDS
        allowed = int(seconds * self.rate.bytes_per_second * RATE_MARGIN)
        room = allowed - len(message.text.encode())
        if room >= len(self._held.encode()) or not message.text:
            self._write(self._held)
        elif room > 0:
            self._write(_first_words(self._held, room))

    def _write(self, text: str) -> None:
        message = self.message
        if message is None or not text:
            return
        self._held = self._held[len(text) :]
        message.text += text
        where = self._where(message)
        if self.settings.speaks:
            self._say(OutputTranscriptDelta(*where, text))
        else:
            self._say(OutputTextDelta(*where, text))

    # ---- sound

    def _speak(self, pcm: bytes) -> None:
        message = self._require_message()
        if self._writer is None:
            self._writer = SoundWriter(self.settings.output_format.sound)
        step = MAX_DELTA_SAMPLES * SAMPLE_BYTES
        for start in range(0, len(pcm), step):
            self._say_audio(message, self._writer.push(pcm[start : start + step]))
            self._release_text()

    def _say_audio(self, message: Message, encoded: bytes) -> None:
        if not encoded:
            return
        message.num_samples += self._num_samples(encoded)
        message.record.num_samples = message.num_samples
        self._say(OutputAudioDelta(*self._where(message), encoded))

    def _num_samples(self, encoded: bytes) -> int:
        """Samples at the model's rate that a delta stands for."""
        sound = self.settings.output_format.sound
        return len(encoded) // sound.bytes_per_sample * OUTPUT_SAMPLE_RATE // sound.rate

    # ---- items

    def _require_message(self) -> Message:
        if self.message is None:
            item = AssistantMessage(self.new_id("item"), [], "in_progress")
            record = self._add_item(item)
            self.message = Message(record, item)
            part = "audio" if self.settings.speaks else "text"
            self._say(ContentPartAdded(*self._where(self.message), part))  # type: ignore[arg-type]  # a str of the two
            content = OutputAudio("") if self.settings.speaks else OutputText("")
            item.content = [content]
        return self.message

    def _add_item(self, item: Item) -> Record:
        index = len(self._items)
        self._items.append(item)
        self._say(OutputItemAdded(self.id, index, snapshot(item)))
        if self.place is None:
            return Record(item, 0)
        journal = self.place.journal
        record = Record(item, journal.next_serial(), origin=self._origin)
        previous_id = journal.add(record, self.place.after_id)
        self.place = Place(journal, item.id)
        self._say(ItemAdded(previous_id, snapshot(item)))
        return record

    def _say_call(self, call: Call) -> None:
        item = FunctionCall(
            self.new_id("item"), call.name, self.new_id("call"), status="in_progress"
        )
        record, index = self._add_item(item), len(self._items) - 1
        where = self.id, item.id, index, item.call_id
        self._say(ArgumentsDelta(*where, call.arguments))
        self._say(ArgumentsDone(*where, call.name, call.arguments))
        item.arguments, item.status = call.arguments, "completed"
        for event in self._item_done(record, index):
            self.outbox.put(event)

    def _close_message(self, status: ItemStatus) -> list[ServerEvent]:
        """Return the message's closing events that are not said yet; the caller says them."""
        message = self.message
        if message is None or message.is_closed:
            return []
        message.is_closed = True
        message.item.status = status
        content = OutputAudio(message.text) if self.settings.speaks else OutputText(message.text)
        message.item.content = [content]
        message.record.revision += 1
        events = self._closings(message)[message.num_closed :]
        message.num_closed += len(events)
        return events

    def _closings(self, message: Message) -> list[ServerEvent]:
        where, text = self._where(message), message.text
        item_done = self._item_done(message.record, message.output_index)
        if not self.settings.speaks:
            return [OutputTextDone(*where, text), ContentPartDone(*where, "text", text), *item_done]
        return [
            OutputAudioDone(*where),
            OutputTranscriptDone(*where, text),
            ContentPartDone(*where, "audio", text),
            *item_done,
        ]

    def _item_done(self, record: Record, index: int) -> list[ServerEvent]:
        item = snapshot(record.item)
        done = OutputItemDone(self.id, index, item)
        if self.place is None:
            return [done]
        return [ItemDone(self.place.journal.previous_id(record), item), done]

    def _unsay(self, event: ServerEvent) -> None:
        """The client does not get this after all."""
        message = self.message
        if isinstance(event, ResponseDone):
            self.state = ReplyState.RUNNING
            return
        assert message is not None, "only messages are withdrawn"
        match event:
            case OutputAudioDelta():
                message.num_samples -= self._num_samples(event.pcm)
                message.record.num_samples = message.num_samples
            case OutputTranscriptDelta() | OutputTextDelta():
                message.text = message.text[: len(message.text) - len(event.delta)]
            case _:
                message.num_closed -= 1
                message.is_closed = False

    def _say_done(self, status: str, details: StatusDetails | None) -> None:
        self._say(ResponseDone(self._view(status, details)))
        self.state = ReplyState.DONE

    def _view(self, status: str, details: StatusDetails | None = None) -> ResponseView:
        is_done = status != "in_progress"
        return ResponseView(
            self.id,
            status,  # type: ignore[arg-type]  # a str of the statuses
            self.settings,
            self.conversation_id,
            details,
            tuple(snapshot(item) for item in self._items),
            self.metadata,
            self.usage if is_done else None,
        )

    def _where(self, message: Message) -> tuple[str, str, int, int]:
        return self.id, message.item.id, message.output_index, 0

    def _say_all(self, events: list[ServerEvent]) -> None:
        for event in events:
            self._say(event)

    def _say(self, event: ServerEvent) -> None:
        self.outbox.put(event, self.id)


def _first_words(text: str, max_bytes: int) -> str:
    """As many whole words as fit; without spaces, as many characters."""
    fitting = text.encode()[:max_bytes].decode(errors="ignore")
    if len(fitting) == len(text) or " " not in text:
        return fitting
    words = fitting[: fitting.rfind(" ") + 1]
    return words if words.strip() else ""
