"""Responses: which replies run, wait and are stopped, and in which worker session each is made.

One response of the conversation at a time, in the conversation's worker session. Others (out of band, or with an input
of their own) have a worker session to themselves, which is closed with them; they run one after the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.events import ResponseDone, StatusDetails
from server.reply import Place, Reply, ReplyState, SpokenRate
from server.reply_options import reply_options
from server.tools import write_prompt
from streaming.errors import ClientError, RequestFailed
from streaming.media import output_ms
from streaming.packets import (
    AudioDelta,
    DoneReason,
    SessionFailed,
    TextDelta,
    TurnDone,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from server.context import Context, Passage, Write
    from server.identity import IdKind
    from server.journal import Journal
    from server.limits import Limits
    from server.outbox import Outbox
    from server.settings import Settings
    from streaming.packets import Capacity, Command

    StopReason = Literal["turn_detected", "client_cancelled"]

CONTEXT_FULL = "context_full"
WORKER_FULL = "worker_full"
FULL_ENOUGH = 0.85
"""Of the model's context: before the next turn the oldest ones leave it."""
SHRUNK = 0.5


@dataclass(slots=True)
class _Asked:
    """A response that has not ended, and where it is made."""

    reply: Reply
    context: Context
    passages: Sequence[Passage] | None
    """None: what the conversation's items say."""
    asked_ms: int
    stop_reason: StopReason = "client_cancelled"
    settle_ms: int = 0
    retry_ms: int = 0
    num_retries: int = 0
    num_shrunk: int = 0
    first_sound_ms: int | None = None
    ended_ms: int | None = None

    @property
    def is_own(self) -> bool:
        return self.passages is not None

    @property
    def heard_samples(self) -> int | None:
        """Nothing behind what was sent can have been heard. None of a reply without sound."""
        return self.reply.num_samples if self.reply.settings.speaks else None


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the parts of a session share."""

    conversation_id: str
    limits: Limits
    journal: Journal
    outbox: Outbox
    new_id: Callable[[IdKind], str]
    new_context: Callable[[], Context]
    send: Callable[[Command], None]


class Responses:
    """Owned by the session, which tells it when there is a worker and what it says."""

    def __init__(self, wiring: Wiring) -> None:
        self.context = wiring.new_context()
        """The conversation's worker session."""
        self.capacity: Capacity | None = None
        """None: there is no worker."""
        self.wants_automatic = False
        """A turn ended while a reply ran: answer it when that is over."""
        self._wiring = wiring
        self._rate = SpokenRate()
        self._main: _Asked | None = None
        self._others: deque[_Asked] = deque()

    # ---- asked by the session

    @property
    def main(self) -> Reply | None:
        """The conversation's newest response."""
        return self._main.reply if self._main is not None else None

    @property
    def is_busy(self) -> bool:
        return self._main is not None and self._main.reply.is_active

    @property
    def is_closing(self) -> bool:
        """A stopped response waits for what the worker says it cost."""
        return self._main is not None and self._main.reply.state is ReplyState.CLOSING

    def running(self) -> set[tuple[str, int]]:
        """Return worker session and turn of every reply that is being made."""
        contexts = [self.context, *(asked.context for asked in self._asked())]
        return {context.running for context in contexts if context.running is not None}

    @property
    def is_audible(self) -> bool:
        """Whoever waits for the conversation's reply has something of it already."""
        reply = self.main
        return reply is not None and (
            reply.num_samples > 0 or (reply.is_shown and not reply.settings.speaks)
        )

    @property
    def played_ms(self) -> int | None:
        """When the newest response has been played, if without a pause; None if it did not come to its end."""
        main = self._main
        if main is None or main.ended_ms is None or main.first_sound_ms is None:
            return main.ended_ms if main is not None else None
        return max(main.ended_ms, main.first_sound_ms + output_ms(main.reply.num_samples))

    @property
    def is_idle(self) -> bool:
        return not self.is_busy and not self._others

    def create(
        self,
        settings: Settings,
        now_ms: int,
        *,
        metadata: dict[str, str] | None = None,
        is_automatic: bool = False,
        passages: Sequence[Passage] | None = None,
    ) -> None:
        """Begin a response of the conversation.

        Raises:
            ClientError: one is running.
        """
        if self._main is not None and self.is_busy:
            raise ClientError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._main.reply.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        journal = self._wiring.journal
        place = Place(journal, journal.tail_id)
        reply = self._new_reply(settings, place, metadata)
        reply.is_automatic = is_automatic
        context = self.context if passages is None else self._wiring.new_context()
        self._main = _Asked(reply, context, passages, now_ms)
        self.wants_automatic = False

    def create_out_of_band(
        self,
        settings: Settings,
        passages: Sequence[Passage],
        now_ms: int,
        metadata: dict[str, str] | None,
    ) -> None:
        """Begin a response beside the conversation.

        Raises:
            ClientError: too many wait already.
        """
        limit = self._wiring.limits.max_out_of_band
        if len(self._others) >= limit:
            raise ClientError(
                "rate_limit_exceeded",
                f"{limit} responses outside the conversation are waiting already.",
            )
        reply = self._new_reply(settings, None, metadata)
        self._others.append(_Asked(reply, self._wiring.new_context(), passages, now_ms))

    def cancel(self, response_id: str | None, reason: StopReason, now_ms: int) -> bool:
        """Stop a response, the conversation's without an id; False if there is none to stop."""
        asked = next((a for a in self._asked() if a.reply.id == response_id), None)
        asked = self._main if response_id is None else asked
        if asked is None or not self._can_stop(asked.reply):
            return False
        self._stop(asked, reason, now_ms)
        return True

    def distrust(self, session_id: str) -> None:
        """A worker session knows what no item says."""
        if self.context.session_id == session_id:
            self.context.distrust()

    def pump(self, prompt: str | None, live: Write | None, now_ms: int) -> None:
        """Begin what waits and can begin; else tell the worker what the user says meanwhile.

        Args:
            prompt: of the session.
            live: writes also of an utterance that is still open; None without one or if nothing is new.
        """
        if self.capacity is None:
            return
        for asked in [self._main, *list(self._others)[:1]]:
            if asked is not None and asked.reply.state is ReplyState.QUEUED:
                self._begin(asked, now_ms)
        if live is not None and (
            self._main is None or self._main.reply.state is not ReplyState.QUEUED
        ):
            self.context.tell(prompt, live)

    def tick(self, now_ms: int) -> None:
        """Give up waiting for what is overdue."""
        limits = self._wiring.limits
        for asked in self._asked():
            if now_ms >= asked.retry_ms:
                asked.retry_ms = 0
            if asked.reply.state is ReplyState.CLOSING and now_ms >= asked.settle_ms:
                self._end_stopped(asked, Usage())
            elif (
                asked.reply.state is ReplyState.QUEUED
                and now_ms >= asked.asked_ms + limits.queue_ms
            ):
                self._fail(asked, "server_error", "No worker had a place for this response.")

    def settle(self) -> None:
        """Wait no longer for what stopped responses cost."""
        for asked in self._asked():
            if asked.reply.state is ReplyState.CLOSING:
                self._end_stopped(asked, Usage())

    def wake_ms(self) -> int | None:
        """When `tick` or `pump` has something to do."""
        times = []
        for asked in self._asked():
            if asked.reply.state is ReplyState.CLOSING:
                times.append(asked.settle_ms)
            elif asked.reply.state is ReplyState.QUEUED:
                times.append(asked.asked_ms + self._wiring.limits.queue_ms)
                times += [asked.retry_ms] if asked.retry_ms else []
        return min(times, default=None)

    # ---- from the worker

    def lose_worker(self) -> bool:
        """The worker is gone; True if the lost reply should be made again, as nothing of it was heard."""
        self.capacity = None
        main = self._main
        is_repeatable = (
            main is not None
            and main.reply.state is ReplyState.RUNNING
            and main.reply.is_automatic
            and not main.reply.num_samples
        )
        for asked in self._asked():
            asked.context.forget()
            if asked.reply.state is ReplyState.RUNNING:
                self._fail(asked, "server_error", "The worker that made this response was lost.")
            elif asked.reply.state is ReplyState.CLOSING:
                self._end_stopped(asked, Usage())
        self.context.forget()
        return is_repeatable

    def receive_text(self, packet: TextDelta) -> None:
        asked = self._running(packet.session_id, packet.turn_id)
        if asked is not None:
            asked.reply.receive_text(packet.text)

    def receive_audio(self, packet: AudioDelta, now_ms: int) -> None:
        asked = self._running(packet.session_id, packet.turn_id)
        if asked is None:
            return
        asked.first_sound_ms = now_ms if asked.first_sound_ms is None else asked.first_sound_ms
        try:
            asked.reply.receive_audio(packet.start_sample, packet.pcm)
        except RequestFailed as fault:
            asked.context.close()
            self._fail(asked, "server_error", fault.message)

    def receive_done(self, packet: TurnDone, now_ms: int) -> None:
        asked = self._of(packet.session_id, packet.turn_id)
        if asked is None:
            self._receive_stray(packet)
            return
        asked.context.end_reply(packet.turn_id)
        if packet.reason is DoneReason.FAILED:
            asked.context.close()  # whether it knows the turn's input is not said
        if asked.reply.state is ReplyState.CLOSING:
            if packet.reason is not DoneReason.CANCELLED:
                self._cut(asked)  # the reply was over before the worker heard of its end
            self._end_stopped(asked, packet.usage)
        elif packet.reason is DoneReason.FAILED:
            self._take_failure(asked, packet.code, packet.message, now_ms)
        else:
            asked.ended_ms = now_ms
            self._finish(asked, packet)

    def receive_failure(self, packet: SessionFailed, now_ms: int) -> None:
        """A worker session is gone."""
        for asked in self._asked():
            if asked.context.session_id == packet.session_id:
                asked.context.forget()
                if asked.reply.state is ReplyState.CLOSING:
                    self._end_stopped(asked, Usage())
                elif asked.reply.state is ReplyState.RUNNING:
                    self._take_failure(asked, packet.code, packet.message, now_ms)
        if self.context.session_id == packet.session_id:
            self.context.forget()

    # ---- inside

    def _asked(self) -> list[_Asked]:
        return [*([self._main] if self._main is not None else []), *self._others]

    def _of(self, session_id: str, turn_id: int) -> _Asked | None:
        """The response that a reply packet belongs to, unless it has ended."""
        for asked in self._asked():
            reply = asked.reply
            is_it = reply.session_id == session_id and reply.turn is not None
            if (
                is_it
                and reply.is_active
                and reply.turn is not None
                and reply.turn.turn_id == turn_id
            ):
                return asked
        return None

    def _running(self, session_id: str, turn_id: int) -> _Asked | None:
        asked = self._of(session_id, turn_id)
        return asked if asked is not None and asked.reply.state is ReplyState.RUNNING else None

    def _new_reply(
        self, settings: Settings, place: Place | None, metadata: dict[str, str] | None
    ) -> Reply:
        wiring = self._wiring
        conversation_id = wiring.conversation_id if place is not None else None
        reply = Reply(
            wiring.new_id("resp"),
            settings,
            wiring.outbox,
            wiring.new_id,
            self._rate,
            conversation_id,
            place,
            metadata,
        )
        reply.announce()
        return reply

    def _begin(self, asked: _Asked, now_ms: int) -> None:
        if now_ms < asked.retry_ms:
            return
        reply, context = asked.reply, asked.context
        given = asked.passages
        write = self._wiring.journal.passages if given is None else lambda _: given
        settings = reply.settings
        prompt = write_prompt(settings.instructions, settings.tools, settings.tool_choice)
        if not context.tell(prompt, write):
            return
        assert self.capacity is not None
        if reply.place is not None:  # it answers everything that was told
            reply.place = Place(self._wiring.journal, self._wiring.journal.tail_id)
        turn_id = context.commit(reply_options(settings, has_speech=bool(self.capacity.voices)))
        assert context.session_id is not None
        reply.begin(context.session_id, turn_id)

    def _can_stop(self, reply: Reply) -> bool:
        if reply.state is ReplyState.DONE:
            return self._wiring.outbox.holds(
                lambda e: isinstance(e, ResponseDone) and e.response.id == reply.id
            )
        return reply.state is not ReplyState.CLOSING

    def _stop(self, asked: _Asked, reason: StopReason, now_ms: int) -> None:
        reply, context = asked.reply, asked.context
        was_running = reply.state is ReplyState.RUNNING
        is_answered = reply.state is ReplyState.DONE
        reply.withdraw()
        asked.stop_reason = reason
        heard = asked.heard_samples
        if was_running:
            context.stop_reply(heard)
            self._show(asked)
            if heard is None:  # of text the worker keeps all that it made
                context.distrust()
            reply.state = ReplyState.CLOSING
            asked.settle_ms = now_ms + self._wiring.limits.settle_ms
            return
        if is_answered:
            self._cut(asked)
        self._end_stopped(asked, reply.usage)

    def _cut(self, asked: _Asked) -> None:
        """The worker has made all of it, but the client has not got all."""
        reply, heard = asked.reply, asked.heard_samples
        if reply.session_id is None or reply.turn is None:
            return
        where = reply.session_id, reply.turn.turn_id
        if heard is None or not asked.context.truncate(*where, heard):
            asked.context.distrust()

    def _end_stopped(self, asked: _Asked, usage: Usage) -> None:
        asked.reply.usage = usage
        asked.reply.say_stopped(StatusDetails(reason=asked.stop_reason))
        self._leave(asked)

    def _finish(self, asked: _Asked, packet: TurnDone) -> None:
        is_limited = packet.reason is DoneReason.MAX_TOKENS
        if is_limited:
            details = StatusDetails(reason="max_output_tokens")
            asked.reply.finish("incomplete", packet.usage, details)
        else:
            asked.reply.finish("completed", packet.usage, None)
        self._show(asked)
        self._leave(asked)
        if not asked.is_own:
            self._make_room(packet.usage)

    def _show(self, asked: _Asked) -> None:
        if asked.reply.is_shown and asked.reply.turn is not None:
            asked.context.show_reply(asked.reply.turn.turn_id)

    def _make_room(self, usage: Usage) -> None:
        """Let old turns go before the context is full, when nobody waits."""
        assert self.capacity is not None
        if _num_tokens(usage) > FULL_ENOUGH * self.capacity.context_tokens:
            self._wiring.journal.shrink(int(SHRUNK * self.capacity.context_tokens))

    def _take_failure(self, asked: _Asked, code: str, message: str, now_ms: int) -> None:
        reply = asked.reply
        can_repeat = not reply.is_shown and now_ms < asked.asked_ms + self._wiring.limits.queue_ms
        if code == WORKER_FULL and can_repeat:
            reply.requeue()
            asked.num_retries += 1
            asked.retry_ms = now_ms + self._wiring.limits.retry_ms * 2**asked.num_retries
        elif code == CONTEXT_FULL and can_repeat and self._shrink(asked):
            reply.requeue()
        elif code == CONTEXT_FULL:
            self._fail(asked, "context_length_exceeded", message, is_ours=False)
        else:
            self._fail(asked, "server_error", "The response could not be made.")

    def _shrink(self, asked: _Asked) -> bool:
        if asked.is_own or self.capacity is None:
            return False
        asked.num_shrunk += 1
        return self._wiring.journal.shrink(
            int(SHRUNK**asked.num_shrunk * self.capacity.context_tokens)
        )

    def _fail(self, asked: _Asked, code: str, message: str, *, is_ours: bool = True) -> None:
        fault = "server_error" if is_ours else "invalid_request_error"
        details = StatusDetails(error_code=code, error_message=message, error_type=fault)  # type: ignore[arg-type]  # one of the two
        asked.reply.fail(details)
        self._show(asked)
        self._leave(asked)

    def _leave(self, asked: _Asked) -> None:
        if asked.is_own:
            asked.context.close()
        if asked is not self._main:
            self._others.remove(asked)

    def _receive_stray(self, packet: TurnDone) -> None:
        """Nobody waits for this turn: the worker gave up its input, or made the reply after it was given up here."""
        contexts = [self.context, *(asked.context for asked in self._asked())]
        context = next((c for c in contexts if c.session_id == packet.session_id), None)
        if context is None or packet.reason is DoneReason.CANCELLED:
            return
        if packet.reason is not DoneReason.FAILED or context.running is not None:
            context.distrust()
            return
        context.close()
        is_full = packet.code == CONTEXT_FULL and context is self.context
        if is_full and self.capacity is not None:
            self._wiring.journal.shrink(int(SHRUNK * self.capacity.context_tokens))

    def close(self) -> None:
        """Give up every worker session."""
        for asked in self._asked():
            if asked.is_own:
                asked.context.close()
        self.context.close()


def _num_tokens(usage: Usage) -> int:
    return (
        usage.input_text_tokens
        + usage.input_audio_tokens
        + usage.input_image_tokens
        + usage.output_text_tokens
    )
