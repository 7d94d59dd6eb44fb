"""Session: a conversation with its client, without sockets and clocks; events and replies in, events and commands out.

    client ──events──▶ receive_event ─┬─▶ InputBuffer ── utterances ──▶ Journal ◀── items ── Reply ◀─┐
    speech thread ───▶ receive_speech ┘                                   │                           │
                                              Context ◀── passages ───────┘       Responses ──────────┘
    client ◀──events── take_event ◀── Outbox     │                                     ▲
    worker ◀─commands─ commands_to_send ◀────────┘      worker ──replies──▶ receive_reply

After every input whatever can go on does (`_advance`). A client event whose predecessor still waits for the worker's
word waits with it, so that answers keep their order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.context import Context, Passage
from server.dialect import correct_dialect
from server.events import (
    ConversationCreated,
    ErrorEvent,
    InputAudioAppend,
    InputAudioClear,
    InputAudioCommit,
    InputCleared,
    InputCommitted,
    InputImageAppend,
    InputVideoAppend,
    InputVideoClear,
    ItemAdded,
    ItemCreate,
    ItemDelete,
    ItemDeleted,
    ItemDone,
    ItemRetrieve,
    ItemRetrieved,
    ItemTruncate,
    OutputAudioClear,
    PlaybackAck,
    ResponseCancel,
    ResponseCreate,
    SessionCreated,
    SessionFinish,
    SessionUpdate,
    SessionUpdated,
    SpeechStarted,
    SpeechStopped,
    TranscriptionSessionUpdate,
    TranscriptionSessionUpdated,
)
from server.heard import Heard
from server.identity import new_id as random_id
from server.input import InputBuffer
from server.intake import Intake, IntakeRules
from server.items import InputAudio, ItemReference, UserMessage, snapshot
from server.journal import Journal, Record
from server.outbox import Outbox
from server.responses import Responses, Wiring
from server.settings import Voices
from server.settings_parsing import apply_response_overrides, apply_session_update
from server.tools import write_prompt
from streaming import vad
from streaming.errors import ClientError
from streaming.media import input_ms, input_samples
from streaming.packets import (
    AudioDelta,
    HoldTurn,
    InputRefused,
    SessionFailed,
    TextDelta,
    TurnDone,
    TurnTruncated,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.dialect import Dialect
    from server.events import ClientEvent, EventError, ResponseRequest, ServerEvent
    from server.identity import Identity, IdKind
    from server.input import Utterance
    from server.limits import Limits
    from server.media.jobs import Decoded, MediaJob
    from server.settings import Settings
    from streaming.packets import Capacity, Command, Reply
    from streaming.silero import SpeechProgress

UNANSWERED = (InputAudioAppend, InputImageAppend, InputVideoAppend, PlaybackAck, OutputAudioClear)
"""Client events that nothing answers: they need not wait for the answer of an earlier one."""


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is to be closed."""

    code: int
    reason: str


class Session:
    """Owned by its connection, which calls one input after the other and then drains the outputs."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        dialect: Dialect,
        capacity: Capacity | None,
        limits: Limits,
        new_id: Callable[[IdKind], str] = random_id,
        now_ms: int = 0,
        *,
        voices: Voices | None = None,
        is_dialect_fixed: bool = False,
    ) -> None:
        """`capacity` None: there is no worker yet."""
        self.identity = identity
        self.settings = settings
        self.dialect = dialect
        self.close: Close | None = None
        self._limits = limits
        self._new_id = new_id
        self._voices = voices or Voices(capacity.voices if capacity else (settings.voice,))
        self._is_dialect_fixed = is_dialect_fixed
        self._began_ms = now_ms
        self._commands: list[Command] = []
        self._num_contexts = 0
        self._outbox = Outbox()
        self._journal = Journal()
        wiring = Wiring(
            identity.conversation_id,
            limits,
            self._journal,
            self._outbox,
            new_id,
            lambda: Context(self._next_session_id, self._commands.append),
        )
        self._responses = Responses(wiring)
        self._responses.capacity = capacity
        self._heard = Heard(wiring, self._responses, self._commands.append)
        self._intake = Intake(self._next_job_id)
        self._num_jobs = 0
        self._input = InputBuffer(settings.input_format.sound, settings.frames)
        self._live_told: tuple[int, int] | None = None
        self._held: deque[ClientEvent] = deque()
        self._held_turn: tuple[str, int] | None = None
        self._outbox.put(SessionCreated(settings))
        self._outbox.put(ConversationCreated(identity.conversation_id))
        self._apply(settings)

    # ---- inputs

    def receive_event(self, event: ClientEvent, now_ms: int) -> None:
        if self._must_wait(event):
            self._held.append(event)
            if len(self._held) > self._limits.max_held_events:
                self._settle()
        else:
            self._take(event, now_ms)
        self._advance(now_ms)

    def receive_error(self, error: EventError, now_ms: int) -> None:
        """A message was no event."""
        self._outbox.put(ErrorEvent.of(error))
        self._advance(now_ms)

    def receive_reply(self, reply: Reply, now_ms: int) -> None:
        """Take what a worker says about one of our worker sessions; what is out of date is dropped."""
        match reply:
            case TextDelta():
                self._responses.receive_text(reply)
            case AudioDelta():
                self._responses.receive_audio(reply)
            case TurnDone():
                self._responses.receive_done(reply, now_ms)
            case TurnTruncated():
                self._heard.receive_truncated(reply)
            case SessionFailed():
                self._responses.receive_failure(reply, now_ms)
            case InputRefused():
                self._outbox.put(ErrorEvent("invalid_image", reply.message))
        self._advance(now_ms)

    def receive_speech(self, progress: SpeechProgress, now_ms: int) -> None:
        """Take what the speech thread has heard."""
        if self._input.is_listening:
            for event in progress.events:
                if isinstance(event, vad.SpeechStarted):
                    self._begin_speech(self._input.our_sample(event.at_sample), now_ms)
                else:
                    self._end_speech(self._input.our_sample(event.at_sample), now_ms)
            self._input.judge(self._input.our_sample(progress.until_sample))
            self._end_endless_speech(now_ms)
        self._advance(now_ms)

    def receive_decoded(self, decoded: Decoded, now_ms: int) -> None:
        """Take what a decoder made of a job."""
        self._advance(now_ms)

    def worker_lost(self, now_ms: int) -> None:
        """The worker is gone, and with it everything it knew of us."""
        self._commands.clear()
        self._held_turn = None
        self._live_told = None
        if self._responses.lose_worker():
            self._responses.wants_automatic = True
        self._heard.settle()
        self._advance(now_ms)

    def worker_ready(self, capacity: Capacity, now_ms: int) -> None:
        """There is a worker (again)."""
        self._responses.capacity = capacity
        self._advance(now_ms)

    def tick(self, now_ms: int) -> None:
        """Do what was due at `wake_ms`."""
        self._responses.tick(now_ms)
        self._heard.tick(now_ms)
        self._advance(now_ms)

    # ---- outputs

    def take_event(self) -> ServerEvent | None:
        """Return the next event for the client, for it to be sent at once."""
        event = self._outbox.take()
        self._pace()
        return event

    @property
    def unsent_bytes(self) -> int:
        return self._outbox.unsent_bytes

    def commands_to_send(self) -> list[Command]:
        commands = list(self._commands)
        self._commands.clear()
        return commands

    def speech_to_hear(self) -> list[bytes | vad.VadSettings | int]:
        heard = list(self._input.to_hear)
        self._input.to_hear.clear()
        return heard

    def media_to_decode(self) -> list[MediaJob]:
        jobs = list(self._intake.jobs)
        self._intake.jobs.clear()
        return jobs

    @property
    def wake_ms(self) -> int | None:
        """When `tick` is due, if nothing else happens."""
        times = [self._responses.wake_ms(), self._heard.wake_ms()]
        return min((time for time in times if time is not None), default=None)

    def end(self) -> list[Command]:
        """The connection is over: return what closes everything the worker still has of us."""
        self._responses.close()
        return self.commands_to_send()

    # ---- client events

    def _must_wait(self, event: ClientEvent) -> bool:
        if self._held:
            return True
        return self._is_settling and not isinstance(event, UNANSWERED)

    @property
    def _is_settling(self) -> bool:
        """Something a client event began waits for the worker's word."""
        return self._responses.is_closing or self._heard.is_waiting

    def _settle(self) -> None:
        self._responses.settle()
        self._heard.settle()

    def _take(self, event: ClientEvent, now_ms: int) -> None:
        try:
            self._dispatch(event, now_ms)
        except ClientError as fault:
            self._outbox.put(ErrorEvent.of(fault, event.event_id))

    def _dispatch(self, event: ClientEvent, now_ms: int) -> None:
        match event:
            case InputAudioAppend():
                self._append_audio(event.audio)
            case SessionUpdate():
                self._update(event)
            case TranscriptionSessionUpdate():
                self._update_transcription(event)
            case InputAudioCommit():
                self._commit_input()
            case InputAudioClear():
                self._input.clear()
                self._outbox.put(InputCleared())
            case ItemCreate():
                self._create_item(event)
            case ItemRetrieve():
                self._retrieve_item(event)
            case ItemDelete():
                self._delete_item(event)
            case ItemTruncate():
                self._truncate_item(event, now_ms)
            case ResponseCreate():
                self._create_response(event.response, now_ms)
            case ResponseCancel():
                self._cancel_response(event, now_ms)
            case PlaybackAck():
                self._heard.acknowledge(event)
            case SessionFinish() | InputImageAppend() | InputVideoAppend() | InputVideoClear():
                pass
            case OutputAudioClear():
                pass

    def _update(self, event: SessionUpdate) -> None:
        dialect = self.dialect
        if not self._is_dialect_fixed and self._responses.main is None:
            dialect = correct_dialect(dialect, event.session)
        settings = apply_session_update(self.settings, event.session, dialect, self._voices)
        self.dialect = dialect
        self._apply(settings)
        self._outbox.put(SessionUpdated(settings))

    def _update_transcription(self, event: TranscriptionSessionUpdate) -> None:
        changed = apply_session_update(self.settings, event.session, self.dialect, self._voices)
        settings = replace(
            self.settings,
            transcription=changed.transcription,
            turn_detection=changed.turn_detection,
            input_format=changed.input_format,
        )
        self._apply(settings)
        self._outbox.put(TranscriptionSessionUpdated(settings))

    def _apply(self, settings: Settings) -> None:
        self.settings = settings
        self._input.set_format(settings.input_format.sound)
        detection = settings.turn_detection
        self._input.set_detection(detection.to_vad() if detection is not None else None)
        self._input.rules = settings.frames
        self._journal.max_pictures = settings.frames.max_frames

    # ---- the user's turn

    def _append_audio(self, received: bytes) -> None:
        before = self._input.clock_sample
        self._input.append(received)
        if self._input.is_listening or self._input.clock_sample == before:
            return
        if self._input.utterance is None:
            self._input.begin_manual(self._new_id("item"), self._journal.next_serial())
        self._input.take_all()

    def _begin_speech(self, at_sample: int, now_ms: int) -> None:
        if not self._input.can_begin(at_sample):
            return  # decided before the detector heard of a commit or clear
        utterance = self._input.begin(at_sample, self._new_id("item"), self._journal.next_serial())
        self._outbox.put(SpeechStarted(input_ms(utterance.start_sample), utterance.item_id))
        detection = self.settings.turn_detection
        if detection is not None and detection.interrupt_response:
            if self._responses.cancel(None, "turn_detected", now_ms):
                self._heard.note_interrupted(now_ms)
            self._responses.wants_automatic = False

    def _end_speech(self, at_sample: int, now_ms: int) -> None:
        if self._input.utterance is None:
            return
        utterance = self._input.end(at_sample)
        self._outbox.put(SpeechStopped(input_ms(utterance.end_sample), utterance.item_id))
        self._add_utterance(utterance)
        detection = self.settings.turn_detection
        if detection is not None and detection.create_response:
            self._responses.wants_automatic = True

    def _end_endless_speech(self, now_ms: int) -> None:
        """A turn that is too long ends where the limit is; what follows is the next one."""
        utterance, limit = self._input.utterance, input_samples(self._limits.turn_ms)
        if utterance is not None and utterance.end_sample - utterance.start_sample >= limit:
            self._end_speech(utterance.end_sample, now_ms)

    def _commit_input(self) -> None:
        pending_ms = self._input.pending_ms
        if pending_ms < self._limits.min_commit_ms:
            raise ClientError(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, "
                f"but buffer only has {pending_ms:.2f}ms of audio.",
            )
        if self._input.utterance is None:
            self._input.begin_manual(self._new_id("item"), self._journal.next_serial())
        self._add_utterance(self._input.end_here())

    def _add_utterance(self, utterance: Utterance) -> None:
        """What the user said becomes an item."""
        item = UserMessage(utterance.item_id, [InputAudio()])
        record = Record(item, utterance.serial, list(utterance.pieces))
        previous_id = self._journal.add(record, self._journal.tail_id)
        self._outbox.put(InputCommitted(previous_id, item.id))
        self._say_added(record, previous_id)

    # ---- items

    def _say_added(self, record: Record, previous_id: str | None) -> None:
        item = snapshot(record.item)
        self._outbox.put(ItemAdded(previous_id, item))
        self._outbox.put(ItemDone(previous_id, item))

    def _create_item(self, event: ItemCreate) -> None:
        item, journal = event.item, self._journal
        if item.id and item.id in journal:
            raise ClientError(
                "item_create_duplicate_item_id",
                f"An item with id '{item.id}' exists already.",
                param="item.id",
            )
        after_id = event.previous_item_id
        if after_id is not None and after_id != "root" and after_id not in journal:
            raise ClientError(
                "item_create_invalid_previous_item_id",
                f"Previous item with id '{after_id}' does not exist.",
                param="previous_item_id",
            )
        pieces = self._intake.read(item, self._intake_rules())
        item.id = item.id or self._new_id("item")
        record = Record(item, journal.next_serial(), pieces)
        where = None if after_id == "root" else after_id or journal.tail_id
        self._say_added(record, journal.add(record, where))

    def _intake_rules(self) -> IntakeRules:
        settings = self.settings
        return IntakeRules(
            settings.input_format.sound, settings.frames.max_pixels, self._limits.turn_ms
        )

    def _retrieve_item(self, event: ItemRetrieve) -> None:
        record = self._require_item(event.item_id, "item_retrieve_invalid_item_id")
        self._outbox.put(ItemRetrieved(snapshot(record.item), self.settings.input_format))

    def _delete_item(self, event: ItemDelete) -> None:
        self._require_item(event.item_id, "item_delete_invalid_item_id")
        self._journal.remove(event.item_id)
        self._outbox.put(ItemDeleted(event.item_id))

    def _require_item(self, item_id: str, code: str) -> Record:
        record = self._journal.get(item_id)
        if record is None:
            raise ClientError(code, f"Item with id '{item_id}' does not exist.", param="item_id")
        return record

    def _truncate_item(self, event: ItemTruncate, now_ms: int) -> None:
        reply = self._responses.main
        message = reply.message if reply is not None and reply.is_active else None
        if message is not None and message.item.id == event.item_id:
            # Heard only so far: the rest is not wanted. First what was made of it must be known.
            self._responses.cancel(None, "client_cancelled", now_ms)
        if self._responses.is_closing:
            self._held.appendleft(event)
        else:
            self._heard.truncate(event, now_ms)

    # ---- responses

    def _create_response(self, request: ResponseRequest, now_ms: int) -> None:
        settings = apply_response_overrides(
            self.settings, request.overrides or {}, self.dialect, self._voices
        )
        passages = self._passages_of(request)
        if request.conversation == "none":
            told = self._journal.passages(None) if passages is None else passages
            self._responses.create_out_of_band(settings, told, now_ms, request.metadata)
        else:
            self._responses.create(settings, now_ms, metadata=request.metadata, passages=passages)

    def _passages_of(self, request: ResponseRequest) -> list[Passage] | None:
        """What a response is to know instead of the conversation."""
        if request.input is None:
            return None
        records = [
            self._record_of(item, f"response.input.{index}")
            for index, item in enumerate(request.input)
        ]
        return [Passage(record.key, record.said()) for record in records]

    def _record_of(self, item: object, where: str) -> Record:
        if not isinstance(item, ItemReference):
            pieces = self._intake.read(item, self._intake_rules(), where)  # type: ignore[arg-type]
            return Record(item, self._journal.next_serial(), pieces)  # type: ignore[arg-type]
        record = self._journal.get(item.id)
        if record is None:
            raise ClientError(
                "invalid_value", f"Item with id '{item.id}' does not exist.", param=f"{where}.id"
            )
        return record

    def _cancel_response(self, event: ResponseCancel, now_ms: int) -> None:
        is_stopped = self._responses.cancel(event.response_id, "client_cancelled", now_ms)
        if not is_stopped:
            raise ClientError(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        self._heard.note_interrupted(now_ms)

    # ---- going on

    def _advance(self, now_ms: int) -> None:
        """Do everything that what has just come in allows."""
        while self._held and not self._is_settling:
            self._take(self._held.popleft(), now_ms)
        if self._responses.wants_automatic and not self._responses.is_busy:
            self._responses.create(self.settings, now_ms, is_automatic=True)
        self._pump(now_ms)
        self._pace()

    def _pump(self, now_ms: int) -> None:
        prompt = write_prompt(
            self.settings.instructions, self.settings.tools, self.settings.tool_choice
        )
        self._responses.pump(prompt, self._live_passages(), now_ms)

    def _live_passages(self) -> Sequence[Passage] | None:
        """What the worker is to know while the user still speaks; None if nothing is new."""
        utterance = self._input.utterance
        if utterance is None:
            self._live_told = None
            return None
        now = utterance.serial, len(utterance.pieces)
        if self._live_told == now:
            return None
        self._live_told = now
        live = Passage(("item", utterance.serial, 0), utterance.pieces, is_growing=True)
        return [*self._journal.passages(self._responses.context.session_id), live]

    def _pace(self) -> None:
        """Have the reply wait while its client does not take what is made."""
        context = self._responses.context
        turn = (context.session_id or "", context.running_turn_id)
        if self._held_turn is not None and self._held_turn != turn:
            self._held_turn = None
        unsent, limit = self._outbox.unsent_bytes, self._limits.hold_bytes
        if self._held_turn is None and unsent > limit and turn[1] is not None:
            self._held_turn = turn[0], turn[1]
            self._commands.append(HoldTurn(*self._held_turn, True))
        elif self._held_turn is not None and unsent < limit // 2:
            self._commands.append(HoldTurn(*self._held_turn, False))
            self._held_turn = None

    def _next_session_id(self) -> str:
        self._num_contexts += 1
        return f"{self.identity.session_id}.{self._num_contexts}"

    def _next_job_id(self) -> str:
        self._num_jobs += 1
        return f"still.{self._num_jobs}"
