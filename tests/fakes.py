"""Fakes that obey the rules of what they stand for, so that cores can be tested without processes.

`FakeWorker` is an engine without a model: it keeps of each session what a model would know, answers with words and
sound of a script, and is strict where the real one would fail a turn. `tests/server/test_fake_worker.py` holds it to
the real engine's behaviour.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from streaming.media import ClipKind
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendPair,
    AppendText,
    AudioDelta,
    CancelTurn,
    Capacity,
    CloseSession,
    CommitTurn,
    DoneReason,
    HoldTurn,
    OpenClip,
    OpenSession,
    ReportPlayed,
    SessionFailed,
    SessionOpened,
    TextDelta,
    TruncateTurn,
    TurnDone,
    TurnTruncated,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaming.packets import Command, Reply, ReplyOptions

CODE_SAMPLES = 480
Known = tuple[str, object]
"""One thing a model knows: whose it is or what it is, and its content."""


@dataclass(frozen=True)
class Script:
    """What a reply says: tokens of text, then sound of so many samples; sound starts after the first token."""

    tokens: tuple[str, ...] = ("Good ", "day", ".")
    num_samples: int = 24_000


@dataclass
class FakeReply:
    turn_id: int
    script: Script
    options: ReplyOptions
    num_tokens: int = 0
    num_samples: int = 0
    heard_samples: int | None = None
    num_kept: int = 0
    is_over: bool = False

    @property
    def total_samples(self) -> int:
        return self.script.num_samples if self.options.speech else 0

    @property
    def text(self) -> str:
        return "".join(self.script.tokens[: self.num_kept])

    @property
    def is_done(self) -> bool:
        return self.num_tokens == len(self.script.tokens) and self.num_samples >= self.total_samples


class State(Enum):
    LISTENING = auto()
    REPLYING = auto()
    OVER = auto()


class Strictness(AssertionError):
    """The gateway sent what a worker would answer with a fault."""


@dataclass
class FakeConversation:
    """One session as the worker knows it."""

    system: str | None
    turn_id: int = -1
    state: State = State.OVER
    known: list[Known | FakeReply] = field(default_factory=list)
    turn_start: int = 0
    clip: list[object] | None = None
    waiting: deque[Command] = field(default_factory=deque)
    void_turn_id: int = -1
    held: bool = False
    played: int = 0

    @property
    def reply(self) -> FakeReply | None:
        last = self.known[-1] if self.known else None
        return last if isinstance(last, FakeReply) else None


class FakeWorker:
    """Takes commands, keeps replies until `take_replies`; `make` goes on with running replies."""

    def __init__(
        self,
        script: Callable[[FakeConversation], Script] | None = None,
        num_lanes: int = 16,
        context_items: int = 1_000_000,
    ) -> None:
        self.capacity = Capacity(num_lanes, 1000, 16, 32_768, ("Chelsie", "Ethan"))
        self.sessions: dict[str, FakeConversation] = {}
        self.commits: list[tuple[str, int, list[Known]]] = []
        """What was known when each reply was asked for."""
        self.log: list[Command] = []
        self._script = script or (lambda _: Script())
        self._context_items = context_items
        self._replies: list[Reply] = []
        self._closed: set[str] = set()

    def take_replies(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        return replies

    def submit(self, command: Command) -> None:
        self.log.append(command)
        match command:
            case OpenSession():
                self._open(command)
            case CloseSession():
                if (
                    command.session_id not in self.sessions
                    and command.session_id not in self._closed
                ):
                    raise Strictness(f"{command} of no session")
                self.sessions.pop(command.session_id, None)
                self._closed.add(command.session_id)
            case _:
                session = self.sessions.get(command.session_id)
                if session is not None:
                    self._receive(command.session_id, session, command)
                elif command.session_id not in self._closed:
                    raise Strictness(f"{command} for an unknown session")

    def fail(self, session_id: str, code: str = "server_error") -> None:
        """Give a session up, as after a step that raised."""
        del self.sessions[session_id]
        self._closed.add(session_id)
        self._replies.append(SessionFailed(session_id, code, "an internal error"))

    def fail_turn(self, session_id: str, code: str) -> None:
        session = self.sessions[session_id]
        if session.state is State.REPLYING:
            self._stop(session)
        else:
            self._forget_turn(session)
        self._finish(session_id, session, DoneReason.FAILED, code)

    def running(self) -> list[str]:
        return [i for i, s in self.sessions.items() if s.state is State.REPLYING]

    def make(self, session_id: str, num_tokens: int = 0, num_samples: int = 0) -> None:
        """Go on with a reply by so much; it ends when nothing is left."""
        session = self.sessions[session_id]
        reply = session.reply
        assert reply is not None and session.state is State.REPLYING
        for token in reply.script.tokens[reply.num_tokens : reply.num_tokens + num_tokens]:
            self._replies.append(TextDelta(session_id, reply.turn_id, token))
            reply.num_tokens += 1
            reply.num_kept += 1
        num_samples = min(num_samples, reply.total_samples - reply.num_samples)
        if num_samples > 0:
            pcm = bytes(2 * num_samples)
            self._replies.append(AudioDelta(session_id, reply.turn_id, reply.num_samples, pcm))
            reply.num_samples += num_samples
        if reply.is_done:
            self._stop(session)
            self._finish(session_id, session, DoneReason.COMPLETED)

    def make_all(self, session_id: str) -> None:
        self.make(session_id, 1_000_000, 1_000_000_000)

    def knows(self, session_id: str) -> list[Known]:
        """What the model of a session knows, in order."""
        return knowledge(self.sessions[session_id])

    # ---- inside

    def _open(self, command: OpenSession) -> None:
        if command.session_id in self.sessions or command.session_id in self._closed:
            raise Strictness(f"{command}: this id has been used")
        if len(self.sessions) >= self.capacity.num_lanes:
            self._closed.add(command.session_id)
            self._replies.append(SessionFailed(command.session_id, "worker_full", "no place"))
            return
        self.sessions[command.session_id] = FakeConversation(command.settings.system_prompt)
        self._replies.append(SessionOpened(command.session_id))

    def _receive(self, session_id: str, session: FakeConversation, command: Command) -> None:
        assert not isinstance(command, OpenSession | CloseSession)
        if isinstance(command, TruncateTurn):
            self._truncate_earlier(session_id, session, command)
        elif isinstance(command, HoldTurn):
            session.held = command.is_held
        elif isinstance(command, ReportPlayed):
            session.played = command.played_samples
        elif (
            command.turn_id < session.turn_id
            or session.turn_id < command.turn_id <= session.void_turn_id
        ):
            return
        elif command.turn_id == session.turn_id:
            self._receive_current(session_id, session, command)
        elif isinstance(command, CancelTurn):
            self._cancel_unseen(session_id, session, command)
        elif session.state is State.REPLYING:
            session.waiting.append(command)
        else:
            if session.state is State.LISTENING:
                self._forget_turn(session)
            session.turn_id, session.state = command.turn_id, State.LISTENING
            session.turn_start = len(session.known)
            self._receive_current(session_id, session, command)

    def _receive_current(
        self, session_id: str, session: FakeConversation, command: Command
    ) -> None:
        if isinstance(command, CancelTurn):
            self._cancel(session_id, session, command)
            return
        if session.state is not State.LISTENING:
            return
        match command:
            case OpenClip():
                self._require(session.clip is None, command)
                session.clip = [command.start.kind]
            case AppendPair():
                self._require(session.clip is not None, command)
                assert session.clip is not None
                self._require(session.clip[0] is not ClipKind.SOUND, command)
                session.clip.append(("pair", command.pair.index, len(command.pair.frames)))
            case AppendChunk():
                self._append_chunk(session, command)
            case AppendText():
                self._require(session.clip is None, command)
                session.known.append((command.role, command.text))
            case AppendImage():
                self._require(session.clip is None, command)
                session.known.append(("image", command.image))
            case CommitTurn():
                self._require(session.clip is None, command)
                self._commit(session_id, session, command)

    def _append_chunk(self, session: FakeConversation, command: AppendChunk) -> None:
        clip, chunk = session.clip, command.chunk
        self._require(clip is not None, command)
        assert clip is not None
        num_chunks = sum(1 for part in clip[1:] if isinstance(part, bytes))
        if clip[0] is not ClipKind.VIDEO:
            self._require(chunk.index == num_chunks, command)
        clip.append(chunk.pcm)
        if chunk.is_last:
            session.known.append(("clip", describe_clip(clip)))
            session.clip = None

    def _commit(self, session_id: str, session: FakeConversation, command: CommitTurn) -> None:
        if len(session.known) > self._context_items:
            self._forget_turn(session)
            self._finish(session_id, session, DoneReason.FAILED, "context_full")
            return
        self.commits.append((session_id, command.turn_id, knowledge(session)))
        script = self._script(session)
        session.known.append(FakeReply(command.turn_id, script, command.options))
        session.state = State.REPLYING

    def _cancel(self, session_id: str, session: FakeConversation, command: CancelTurn) -> None:
        if session.state is State.LISTENING:
            self._forget_turn(session)
            self._finish(session_id, session, DoneReason.CANCELLED)
            return
        reply = session.reply
        if reply is None or reply.turn_id != command.turn_id:
            return
        was_running = session.state is State.REPLYING
        if was_running:
            self._stop(session)
        if command.heard_samples is not None:
            self._say_truncated(session_id, reply, command.heard_samples)
        if was_running:
            self._finish(session_id, session, DoneReason.CANCELLED)

    def _cancel_unseen(
        self, session_id: str, session: FakeConversation, command: CancelTurn
    ) -> None:
        session.waiting = deque(
            c for c in session.waiting if getattr(c, "turn_id", -1) != command.turn_id
        )
        session.void_turn_id = command.turn_id
        if session.state is State.LISTENING:
            self._forget_turn(session)
            session.state = State.OVER
        self._replies.append(TurnDone(session_id, command.turn_id, DoneReason.CANCELLED, Usage()))

    def _truncate_earlier(
        self, session_id: str, session: FakeConversation, command: TruncateTurn
    ) -> None:
        replies = [k for k in session.known if isinstance(k, FakeReply)]
        reply = next((r for r in replies if r.turn_id == command.turn_id), None)
        if reply is None or not reply.is_over:
            return
        if reply is not replies[-1]:
            raise Strictness(f"{command} cuts away later turns")
        self._say_truncated(session_id, reply, command.heard_samples)

    def _say_truncated(self, session_id: str, reply: FakeReply, heard_samples: int) -> None:
        limit = reply.num_samples if reply.heard_samples is None else reply.heard_samples
        reply.heard_samples = max(0, min(heard_samples, limit))
        if reply.options.speech and reply.heard_samples < reply.total_samples:
            kept = len(reply.script.tokens) * reply.heard_samples // reply.total_samples
            reply.num_kept = min(reply.num_kept, kept)
        self._replies.append(
            TurnTruncated(session_id, reply.turn_id, reply.heard_samples, reply.text)
        )

    def _stop(self, session: FakeConversation) -> None:
        assert session.reply is not None
        session.reply.is_over = True

    def _forget_turn(self, session: FakeConversation) -> None:
        del session.known[session.turn_start :]
        session.clip = None

    def _finish(
        self, session_id: str, session: FakeConversation, reason: DoneReason, code: str = ""
    ) -> None:
        session.state, session.clip = State.OVER, None
        reply = session.reply
        num_text = reply.num_tokens if reply is not None else 0
        num_codes = reply.num_samples // CODE_SAMPLES if reply is not None else 0
        usage = Usage(
            len(session.known), output_text_tokens=num_text, output_audio_tokens=num_codes
        )
        self._replies.append(TurnDone(session_id, session.turn_id, reason, usage, code, code))
        while session.waiting and session.state is not State.REPLYING:
            self._receive(session_id, session, session.waiting.popleft())

    @staticmethod
    def _require(is_right: bool, command: Command) -> None:
        if not is_right:
            raise Strictness(str(command))


def knowledge(session: FakeConversation) -> list[Known]:
    """What a model knows, replies as plain text; nothing of a reply that said nothing."""
    found: list[Known] = []
    for known in session.known:
        if not isinstance(known, FakeReply):
            found.append(known)
        elif known.text:
            found.append(("assistant", known.text))
    return found


def describe_clip(clip: list[object]) -> tuple[object, ...]:
    """Kind, length and checksum of the sound, and pairs of a clip, however it was cut."""
    sound = b"".join(part for part in clip[1:] if isinstance(part, bytes))
    pairs = tuple(part for part in clip[1:] if isinstance(part, tuple))
    return (clip[0], len(sound), zlib.crc32(sound), *pairs)
