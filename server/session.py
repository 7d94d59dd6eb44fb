"""Session: a conversation with its client, without sockets and clocks; events and replies in, events and commands out.

    client ──events──▶ receive_event ──┬─▶ Turns ─── utterances ─▶ Journal ◀─ items ─ Reply ◀──────┐
    speech thread ───▶ receive_speech ─┤                              │                             │
    decoders ────────▶ receive_decoded ┘          Context ◀─ passages ┘              Responses ─────┘
    client ◀──events── take_event ◀── Outbox         │                                   ▲
    worker ◀─commands─ commands_to_send ◀────────────┘       worker ──▶ receive_reply ───┘

After every input whatever can go on does (`_advance`). A client event whose predecessor still waits for the worker's
word waits with it, so that answers keep their order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from server.context import Context
from server.dialect import correct_dialect
from server.events import (
    ConversationCreated,
    ErrorEvent,
    InputAudioAppend,
    InputAudioClear,
    InputAudioCommit,
    InputCleared,
    InputImageAppend,
    InputVideoAppend,
    InputVideoClear,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    OutputAudioClear,
    PlaybackAck,
    ResponseCancel,
    ResponseCreate,
    SessionCreated,
    SessionFinish,
    SessionUpdate,
    SessionUpdated,
    TranscriptionSessionUpdate,
    TranscriptionSessionUpdated,
)
from server.heard import Heard
from server.identity import new_id as random_id
from server.intake import Intake
from server.item_events import ItemEvents
from server.journal import Journal
from server.lifetime import Lifetime
from server.media.jobs import FaultCode
from server.outbox import Outbox
from server.pacing import Pacing
from server.responses import Responses, Wiring
from server.settings import Voices
from server.settings_parsing import apply_response_overrides, apply_session_update
from server.tools import write_prompt
from server.transcriber import Transcriber
from server.turns import Turns
from server.video import Video
from streaming.errors import ClientError
from streaming.packets import (
    AudioDelta,
    InputRefused,
    SessionFailed,
    TextDelta,
    TurnDone,
    TurnTruncated,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.dialect import Dialect
    from server.events import ClientEvent, EventError, ResponseRequest, ServerEvent
    from server.identity import Identity, IdKind
    from server.lifetime import Close
    from server.limits import Limits
    from server.media.jobs import Decoded, MediaJob
    from server.settings import Settings
    from streaming.packets import Capacity, Command, Reply
    from streaming.silero import SpeechProgress
    from streaming.vad import VadSettings

UNANSWERED = (InputAudioAppend, InputImageAppend, InputVideoAppend, PlaybackAck, OutputAudioClear)
"""Client events that nothing answers: they need not wait for the answer of an earlier one."""


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
        self._limits = limits
        self._voices = voices or Voices(capacity.voices if capacity else (settings.voice,))
        self._is_dialect_fixed = is_dialect_fixed
        self._commands: list[Command] = []
        self._jobs: list[MediaJob] = []
        self._held: deque[ClientEvent] = deque()
        self._num_names = 0
        self._outbox = Outbox()
        self._journal = Journal()
        wiring = Wiring(
            identity.conversation_id,
            limits,
            self._journal,
            self._outbox,
            new_id,
            lambda: Context(self._new_name, self._commands.append),
            self._commands.append,
        )
        self._responses = Responses(wiring)
        self._responses.capacity = capacity
        self._heard = Heard(wiring, self._responses)
        self._transcriber = Transcriber(wiring)
        self._turns = Turns(wiring, settings, self._responses, self._heard, self._transcriber)
        self._intake = Intake(self._new_name, self._jobs.append, limits.turn_ms)
        self._items = ItemEvents(wiring, self._intake)
        self._video = Video(wiring, self._turns, self._new_name, self._jobs.append, now_ms)
        self._pacing = Pacing(wiring)
        self._lifetime = Lifetime(limits, self._outbox, now_ms)
        self._outbox.put(SessionCreated(settings))
        self._outbox.put(ConversationCreated(identity.conversation_id))
        self._apply(settings)

    # ---- inputs

    def receive_event(self, event: ClientEvent, now_ms: int) -> None:
        """Take what the client sent."""
        self._lifetime.note_message(now_ms)
        if self._lifetime.is_finished:
            return
        if self._must_wait(event):
            self._held.append(event)
            if len(self._held) > self._limits.max_held_events:
                self._settle()
        else:
            self._take(event, now_ms)
        self._advance(now_ms)

    def receive_error(self, error: EventError, now_ms: int) -> None:
        """Take a message of the client that was no event."""
        self._lifetime.note_message(now_ms)
        self._lifetime.note_fault(now_ms)
        self._say_fault(error, error.event_id)
        self._advance(now_ms)

    def receive_reply(self, reply: Reply, now_ms: int) -> None:
        """Take what a worker says about one of our worker sessions; what is out of date is dropped."""
        match reply:
            case TextDelta():
                self._responses.receive_text(reply)
                self._transcriber.receive_text(reply)
            case AudioDelta():
                self._responses.receive_audio(reply, now_ms)
            case TurnDone():
                self._responses.receive_done(reply, now_ms)
                self._transcriber.receive_done(reply)
            case TurnTruncated():
                self._heard.receive_truncated(reply)
            case SessionFailed():
                self._responses.receive_failure(reply, now_ms)
                self._transcriber.receive_failure(reply.session_id, reply.code, now_ms)
            case InputRefused():
                self._say_fault(ClientError("invalid_image", reply.message), None)
        self._advance(now_ms)

    def receive_speech(self, progress: SpeechProgress, now_ms: int) -> None:
        """Take what the speech thread has heard."""
        if not self._lifetime.is_finishing:
            self._turns.receive_speech(progress, now_ms)
        self._advance(now_ms)

    def receive_decoded(self, decoded: Decoded, now_ms: int) -> None:
        """Take what a decoder made of a job."""
        fault = self._intake.receive(decoded)
        if fault is not None:
            is_ours = fault.code is FaultCode.DROPPED
            code = "server_error" if is_ours else fault.code.value
            self._say_fault(ClientError(code, fault.message), None)
        self._video.receive(decoded, now_ms)
        self._advance(now_ms)

    def worker_lost(self, now_ms: int) -> None:
        """The worker is gone, and with it everything it knew of us."""
        self._commands.clear()
        self._pacing.forget()
        if self._responses.lose_worker():
            self._responses.wants_automatic = True
        self._transcriber.lose_worker()
        self._turns.tell_again()
        self._heard.settle()
        self._advance(now_ms)

    def worker_ready(self, capacity: Capacity, now_ms: int) -> None:
        """There is a worker (again)."""
        self._responses.capacity = capacity
        self._advance(now_ms)

    def tick(self, now_ms: int) -> None:
        """Do what was due at `wake_ms`."""
        self._lifetime.tick(now_ms)
        self._responses.tick(now_ms)
        self._heard.tick(now_ms)
        self._transcriber.tick(now_ms)
        if not self._lifetime.is_finishing:
            self._turns.tick(now_ms)
        self._advance(now_ms)

    # ---- outputs

    def take_event(self) -> ServerEvent | None:
        """Return the next event for the client, for it to be sent at once."""
        event = self._outbox.take()
        self._pacing.update(self._responses.running())
        return event

    @property
    def unsent_bytes(self) -> int:
        return self._outbox.unsent_bytes

    def commands_to_send(self) -> list[Command]:
        """Return and forget what the worker is to be told."""
        commands = list(self._commands)
        self._commands.clear()
        return commands

    def speech_to_hear(self) -> list[bytes | VadSettings | int]:
        """Return and forget what the speech thread is to be given: sound, settings, where a turn was ended."""
        to_hear = self._turns.input.to_hear
        heard = list(to_hear)
        to_hear.clear()
        return heard

    def media_to_decode(self) -> list[MediaJob]:
        """Return and forget the jobs for the decoders."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    @property
    def is_idle(self) -> bool:
        """Nobody is in the middle of something: no turn is open, nothing waits to be answered or sent."""
        is_quiet = self._turns.input.utterance is None and not self._held
        is_answered = self._responses.is_idle and not self._responses.wants_automatic
        return is_quiet and is_answered and self._outbox.unsent_bytes == 0

    @property
    def wake_ms(self) -> int | None:
        """When `tick` is due, if nothing else happens."""
        times = [
            self._lifetime.wake_ms(),
            self._responses.wake_ms(),
            self._heard.wake_ms(),
            self._transcriber.wake_ms(),
            None if self._lifetime.is_finishing else self._turns.silence_ms(),
        ]
        return min((time for time in times if time is not None), default=None)

    @property
    def close(self) -> Close | None:
        """The connection is to be closed so, once `take_event` has nothing more."""
        return self._lifetime.close

    def end(self) -> list[Command]:
        """The connection is over: return what closes everything the worker still has of us."""
        self._responses.close()
        self._transcriber.close()
        return self.commands_to_send()

    # ---- client events

    def _must_wait(self, event: ClientEvent) -> bool:
        if self._held:
            return True
        return self._is_settling and not isinstance(event, UNANSWERED)

    @property
    def _is_settling(self) -> bool:
        """Something that a client event began waits for the worker's word."""
        return self._responses.is_closing or self._heard.is_waiting

    def _settle(self) -> None:
        self._responses.settle()
        self._heard.settle()

    def _take(self, event: ClientEvent, now_ms: int) -> None:
        try:
            self._dispatch(event, now_ms)
        except ClientError as fault:
            self._say_fault(fault, event.event_id)

    def _dispatch(self, event: ClientEvent, now_ms: int) -> None:
        match event:
            case InputAudioAppend():
                self._append_sound(event, now_ms)
            case InputAudioCommit():
                self._turns.commit(now_ms)
            case InputAudioClear():
                self._turns.input.clear()
                self._outbox.put(InputCleared())
            case InputImageAppend():
                self._video.add_picture(event, now_ms)
            case InputVideoAppend():
                self._video.add_chunk(event, now_ms)
            case InputVideoClear():
                self._video.clear()
            case SessionUpdate():
                self._update(event)
            case TranscriptionSessionUpdate():
                self._update_transcription(event)
            case ItemCreate():
                self._items.create(event, self.settings)
            case ItemRetrieve():
                self._items.retrieve(event, self.settings)
            case ItemDelete():
                self._items.delete(event)
            case ItemTruncate():
                self._truncate(event, now_ms)
            case PlaybackAck():
                self._heard.acknowledge(event)
            case ResponseCreate():
                self._create_response(event.response, now_ms)
            case ResponseCancel():
                self._cancel_response(event, now_ms)
            case OutputAudioClear():
                pass
            case SessionFinish():
                self._lifetime.is_finishing = True
                self._turns.input.clear()

    def _say_fault(self, fault: ClientError, event_id: str | None) -> None:
        if not self._lifetime.is_finishing:
            self._outbox.put(ErrorEvent.of(fault, event_id))

    def _append_sound(self, event: InputAudioAppend, now_ms: int) -> None:
        if event.audio and not self._lifetime.is_finishing:
            self._video.begin_sound(now_ms)
            self._turns.append(event.audio, now_ms)

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
        self._prompt = write_prompt(settings.instructions, settings.tools, settings.tool_choice)
        self._turns.apply(settings)
        self._journal.max_pictures = settings.frames.max_frames

    def _truncate(self, event: ItemTruncate, now_ms: int) -> None:
        reply = self._responses.main
        message = reply.message if reply is not None and reply.is_active else None
        if message is not None and message.item.id == event.item_id:
            # Heard only so far: the rest is not wanted. First what was made of it must be known.
            self._responses.cancel(None, "client_cancelled", now_ms)
        if self._responses.is_closing:
            self._held.appendleft(event)
        else:
            self._heard.truncate(event, now_ms)

    def _create_response(self, request: ResponseRequest, now_ms: int) -> None:
        settings = apply_response_overrides(
            self.settings, request.overrides or {}, self.dialect, self._voices
        )
        given = request.input
        passages = None if given is None else self._items.passages(given, settings)
        if request.conversation == "none":
            told = self._journal.passages(None) if passages is None else passages
            self._responses.create_out_of_band(settings, told, now_ms, request.metadata)
        else:
            self._responses.create(settings, now_ms, metadata=request.metadata, passages=passages)

    def _cancel_response(self, event: ResponseCancel, now_ms: int) -> None:
        if not self._responses.cancel(event.response_id, "client_cancelled", now_ms):
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
        self._video.report(now_ms)
        self._pacing.update(self._responses.running())
        if self._lifetime.is_finishing and self._is_all_said:
            self._lifetime.finish(now_ms)

    def _pump(self, now_ms: int) -> None:
        """Tell the worker what it can be told."""
        if self._responses.capacity is None:
            return
        self._responses.pump(self._prompt, self._turns.write_live(), now_ms)
        if not self._responses.is_busy or self._responses.is_audible:
            self._transcriber.pump(now_ms)

    @property
    def _is_all_said(self) -> bool:
        is_idle = self._responses.is_idle and not self._responses.wants_automatic
        is_over = self._lifetime.is_finished or self._held
        return is_idle and self._transcriber.is_idle and not is_over

    def _new_name(self) -> str:
        """Return an id for a worker session or a decoder's job."""
        self._num_names += 1
        return f"{self.identity.session_id}.{self._num_names}"
