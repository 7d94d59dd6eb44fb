"""The worker's twin of a session: turns, their replies, and what of them stays in the history.

    clip parts, text, images ─▶ Prompt: segments of the Thinker, and of the Talker right behind
    commit ─▶ SpokenReply: text and sound, until it is done or cancelled ─▶ joins the prompt, as far as it was heard

Everything is decided in integers; what is to be computed is handed to the scheduler. Row i of the Thinker and row i of
the Talker are the same row of the prompt, except while a reply runs: then the Talker's cache ends in the reply's own
span, which is withdrawn afterwards, and the reply enters as prompt rows (model-spec 6.4).
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from streaming.engine.alignment import SpeakingRate
from streaming.engine.pictures import Pictures
from streaming.engine.prompt import PictureRefused, Prompt
from streaming.engine.reply import SpokenReply
from streaming.engine.sequence import Pace, Role, Segment, Sequence
from streaming.errors import RequestFailed
from streaming.packets import (
    AppendChunk,
    AppendPair,
    AppendText,
    CancelTurn,
    CommitTurn,
    DoneReason,
    HoldTurn,
    InputRefused,
    OpenClip,
    ReportPlayed,
    TruncateTurn,
    TurnDone,
    TurnTruncated,
    Usage,
)

if TYPE_CHECKING:
    from streaming.engine.shared import Shared
    from streaming.packets import ReplyOptions, SessionSettings

TurnCommand = (
    OpenClip
    | AppendChunk
    | AppendText
    | Pictures
    | CommitTurn
    | CancelTurn
    | HoldTurn
    | ReportPlayed
    | TruncateTurn
)
MAX_WAITING_COMMANDS = 4096
"""Input of the next turn while a reply still runs: over an hour of sound with camera."""


class TurnState(Enum):
    LISTENING = auto()
    REPLYING = auto()
    OVER = auto()


class Conversation:
    """One session in the worker. `receive` takes its commands, the `…_done` methods what was computed for it.

    Raises RequestFailed from the constructor if the system prompt does not fit.
    """

    def __init__(
        self, session_id: str, number: int, lane: int, settings: SessionSettings, shared: Shared
    ) -> None:
        self.session_id = session_id
        self.lane = lane
        self.pace = Pace()
        self.turn_id = -1
        self.state = TurnState.OVER
        self.reply: SpokenReply | None = None
        """The newest reply, until the next turn begins."""
        self.replies: list[SpokenReply] = []
        """All whose text stands in the history: it can be cut inside each of them."""
        self.rate = SpeakingRate()
        self._shared = shared
        self._settings = settings
        thinker = Sequence(2 * number, session_id, Role.THINKER, lane, self.pace)
        talker = Sequence(2 * number + 1, session_id, Role.TALKER, lane, self.pace)
        self.prompt = Prompt(thinker, talker if shared.omni.config.has_speech else None, shared)
        self._void_turn_id = -1
        """Cancelled before anything of it was taken in."""
        self._waiting: deque[TurnCommand] = deque()
        system = settings.system_prompt
        self.prompt.write_system(shared.omni.system_prompt if system is None else system)

    def receive(self, command: TurnCommand, now_ms: float) -> None:
        """Take one command. Faults end the turn (`TurnDone` FAILED) or leave out one piece (`InputRefused`)."""
        if isinstance(command, TruncateTurn):
            self._truncate_earlier(command, now_ms)
        elif command.turn_id < self.turn_id or self.turn_id < command.turn_id <= self._void_turn_id:
            pass  # stale
        elif command.turn_id == self.turn_id:
            self._receive_current(command, now_ms)
        elif isinstance(command, CancelTurn):
            self._cancel_unseen(command)
        elif isinstance(command, HoldTurn | ReportPlayed):
            pass  # of a reply that does not run
        elif self.state is TurnState.REPLYING:
            self._wait(command)
        else:
            self._begin_turn(command.turn_id)
            self._receive_current(command, now_ms)

    def fail_turn(self, code: str, message: str) -> None:
        """Give up the current turn; its input is forgotten, or of its reply what is not computed yet."""
        usage = Usage()
        if self.state is TurnState.REPLYING:
            usage = self._running().usage
            self._running().stop()
        else:
            self.prompt.forget_turn()
        self._finish(DoneReason.FAILED, usage, code, message)

    # ---- what was computed

    def thinker_prefilled(self, segment: Segment | None, token: int | None, now_ms: float) -> None:
        """Rows of the prompt are computed; `segment` holds what the Talker is fed for them."""
        if self.prompt.talker is not None and segment is not None:
            self.prompt.talker.append(segment)
        if token is not None:
            self._running().prefilled(token)
            self._finish_if_done(now_ms)

    def thinker_decoded(self, token: int, now_ms: float) -> None:
        self._running().thinker_decoded(token, now_ms)
        self._finish_if_done(now_ms)

    def talker_decoded(self, code: int, now_ms: float) -> None:
        self._running().talker_decoded(code)
        self._finish_if_done(now_ms)

    def window_done(self, pcm: bytes, is_last: bool, now_ms: float) -> None:
        self._running().window_done(pcm, is_last, now_ms)
        self._finish_if_done(now_ms)

    # ---- input of a turn

    def _receive_current(self, command: TurnCommand, now_ms: float) -> None:
        if isinstance(command, CancelTurn):
            self._cancel(command, now_ms)
            return
        if isinstance(command, HoldTurn | ReportPlayed):
            self._steer(command, now_ms)
            return
        if self.state is not TurnState.LISTENING:
            return  # stale: the turn is committed or over
        try:
            self._receive_input(command, now_ms)
        except PictureRefused as fault:
            refused = InputRefused(self.session_id, self.turn_id, "invalid_image", str(fault))
            self._shared.emit(refused)
        except RequestFailed as fault:
            self.fail_turn(fault.code, fault.message)
        except ValueError as fault:  # what `model` raises about media, text, voices
            self.fail_turn("invalid_input", str(fault))

    def _receive_input(self, command: TurnCommand, now_ms: float) -> None:
        seconds = self._shared.omni.config.thinker.seconds_per_chunk
        self.pace.listen(now_ms + 1000 * seconds)
        match command:
            case OpenClip():
                self.prompt.open_clip(command.start.kind)
            case Pictures(AppendPair(pair=pair)):
                self.prompt.append_pair(pair, command)
            case Pictures():
                self.prompt.append_image(command)
            case AppendChunk():
                self.prompt.append_chunk(command.chunk)
            case AppendText():
                self.prompt.append_text(command.role, command.text)
            case CommitTurn():
                self._commit(command.options, now_ms)

    def _begin_turn(self, turn_id: int) -> None:
        if self.state is TurnState.LISTENING:  # abandoned without a word: nothing of it stays
            self.prompt.forget_turn()
        self.turn_id = turn_id
        self.state = TurnState.LISTENING
        if self.reply is not None:
            self._join_reply(self.reply)
        self.prompt.begin_turn()

    def _join_reply(self, reply: SpokenReply) -> None:
        rows = None
        if reply.num_rows and self.prompt.talker is not None:
            rows = self._shared.runner.reply_rows(self.lane, reply.num_rows)
        self.prompt.join_reply(reply.start, reply.num_rows, rows, reply.uncomputed_tokens)
        self.reply = None

    def _commit(self, options: ReplyOptions, now_ms: float) -> None:
        if self.prompt.has_open_clip:
            raise RequestFailed("clip_open", "the turn was committed inside a clip")
        voice = self._settings.voice
        reply = SpokenReply(self.turn_id, self.prompt, options, voice, self.pace, self._shared)
        self.reply = reply
        self.replies.append(reply)
        self.state = TurnState.REPLYING
        self.pace.wait(now_ms, speech=options.speech)

    def _wait(self, command: TurnCommand) -> None:
        """Keep what came for the next turn until the reply ends."""
        if len(self._waiting) >= MAX_WAITING_COMMANDS:
            self._waiting.clear()
            message = f"{MAX_WAITING_COMMANDS} packets wait for a reply to end"
            self.fail_turn("input_overflow", message)
            return
        self._waiting.append(command)

    def _take_waiting(self, now_ms: float) -> None:
        while self._waiting and self.state is not TurnState.REPLYING:
            self.receive(self._waiting.popleft(), now_ms)

    # ---- the end of a turn

    def _steer(self, command: HoldTurn | ReportPlayed, now_ms: float) -> None:
        if self.state is not TurnState.REPLYING:
            return
        if isinstance(command, HoldTurn):
            self.pace.is_held = command.is_held
        else:
            self.pace.report(command.played_samples, now_ms)

    def _finish_if_done(self, now_ms: float) -> None:
        reply = self._running()
        if not reply.is_done:
            return
        reply.teach(self.rate)
        reply.stop()
        reason = DoneReason.MAX_TOKENS if reply.is_limited else DoneReason.COMPLETED
        self._finish(reason, reply.usage)
        self._take_waiting(now_ms)

    def _cancel_unseen(self, command: CancelTurn) -> None:
        """Cancel a turn of which nothing has been taken in yet."""
        self._waiting = deque(c for c in self._waiting if c.turn_id != command.turn_id)
        self._void_turn_id = command.turn_id
        if self.state is TurnState.LISTENING:
            self.prompt.forget_turn()
            self.state = TurnState.OVER
        done = TurnDone(self.session_id, command.turn_id, DoneReason.CANCELLED, Usage())
        self._shared.emit(done)

    def _cancel(self, command: CancelTurn, now_ms: float) -> None:
        if self.state is TurnState.LISTENING:
            self.prompt.forget_turn()
            self._finish(DoneReason.CANCELLED, Usage())
        elif self.reply is not None and self.reply.turn_id == command.turn_id:
            self._cancel_reply(self.reply, command.heard_samples)
        self._take_waiting(now_ms)

    def _cancel_reply(self, reply: SpokenReply, heard_samples: int | None) -> None:
        """Stop the newest reply if it still runs, and keep what was heard of it."""
        is_running, usage = self.state is TurnState.REPLYING, reply.usage
        if is_running:
            reply.is_limited = False
            reply.stop()
        if heard_samples is not None:
            self._truncate(reply, heard_samples)
        if is_running:
            self._finish(DoneReason.CANCELLED, usage)

    def _finish(self, reason: DoneReason, usage: Usage, code: str = "", message: str = "") -> None:
        self.state = TurnState.OVER
        self.pace.listen(self.pace.due_ms)  # nobody waits for a reply any more, nor is late for one
        self._shared.emit(TurnDone(self.session_id, self.turn_id, reason, usage, code, message))

    # ---- cutting the history to what was heard

    def _truncate_earlier(self, command: TruncateTurn, now_ms: float) -> None:
        reply = next((r for r in self.replies if r.turn_id == command.turn_id), None)
        if reply is None or not reply.is_over:
            return  # unknown, or it still runs: then CancelTurn is what cuts it
        if reply is self.reply:
            self._truncate(reply, command.heard_samples)
            return
        if self.state is TurnState.REPLYING:  # it answers a history that is no longer true
            self._cancel(CancelTurn(self.session_id, self.turn_id), now_ms)
        self._cut_behind(reply, command.heard_samples)

    def _truncate(self, reply: SpokenReply, heard_samples: int) -> None:
        """Keep of the newest reply what was heard, and say what that is."""
        num_heard = self._hear(reply, heard_samples)
        if num_heard <= reply.num_rows:
            reply.is_limited = False  # an unspoken last token is cut as well
        if num_heard < reply.num_rows:
            reply.num_rows = num_heard
            self.prompt.rewind_reply(reply.start, reply.computed_tokens)

    def _cut_behind(self, reply: SpokenReply, heard_samples: int) -> None:
        """Keep of an earlier reply what was heard; what followed goes, but for the turn that is being heard."""
        num_heard = self._hear(reply, heard_samples)
        reply.num_rows = min(num_heard, reply.num_rows)
        reply.is_limited = reply.is_limited and num_heard > reply.num_rows
        self.replies = self.replies[: self.replies.index(reply) + 1]
        self.reply = None
        keep_turn = self.state is TurnState.LISTENING
        self.prompt.rebase(
            reply.start, reply.num_rows, reply.uncomputed_tokens, keep_turn=keep_turn
        )

    def _hear(self, reply: SpokenReply, heard_samples: int) -> int:
        num_heard = reply.hear(heard_samples, self.rate)
        text = self._shared.omni.tokenizer.decode(reply.tokens[:num_heard])
        assert reply.heard_samples is not None
        heard = reply.heard_samples
        self._shared.emit(TurnTruncated(self.session_id, reply.turn_id, heard, text))
        return num_heard

    def _running(self) -> SpokenReply:
        assert self.reply is not None, "no reply runs"
        return self.reply
