"""One WebSocket around one Session: a task that reads, a task that sends, a timer, and nothing else that waits.

    socket ─▶ read ─▶ parse ─▶ Session ─▶ commands, sound, pictures ─▶ worker, speech thread, decoders
                                  ▲  │                                       │
                       timer ─────┘  └─▶ send ─▶ socket        replies ◀─────┘ (straight into the Session)

The Session is asked for the next event only when the socket can take one, so what an interruption discards has not
left it. Its input is handled as it is read; when what it asked for is not done yet, reading waits, and TCP with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from server.admission import TokenBucket
from server.events import EventError, parse_binary, parse_text
from server.logs import say
from streaming.packets import (
    AppendChunk,
    AppendImage,
    AppendText,
    AudioDelta,
    CloseSession,
    CommitTurn,
    OpenClip,
    SessionFailed,
    TurnDone,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from server.config import ServerConfig
    from server.events import ClientEvent
    from server.hearing import Hearing
    from server.media.jobs import Decoded, MediaJob
    from server.metrics import Metrics
    from server.render import Renderer
    from server.session import Session
    from server.worker_client import WorkerClient
    from streaming.packets import Command, Reply
    from streaming.silero import SpeechProgress

log = logging.getLogger(__name__)

LONG_MESSAGE_BYTES = 256 * 1024
"""Longer ones are parsed beside the loop."""
MAX_LINK_BYTES = 64 * 1024 * 1024
"""Unsent to the worker; beyond it nobody reads, as the link is everybody's."""
MAX_UNSENT_BYTES = 4 * 1024 * 1024
"""Unsent to the client; beyond it nothing is read, as what it sends is answered. A held reply stays below."""
ROOM_POLL_S = 0.02
SHORTEST_CHARGED_BYTES = 4096
"""What a message costs of the rate at least: a short one is as much work as a long one, about a thousand a second."""
POISON_DEATHS = 2
"""Worker deaths in the midst of a session's work, after which it is the suspect."""
OUTPUT_BYTES_PER_S = 2 * 24_000

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Closing:
    """How a socket is closed."""

    code: int
    reason: str = ""


SLOW_CONSUMER = Closing(1008, "slow_consumer")
SERVER_ERROR = Closing(1011, "server_error")
SHUTTING_DOWN = Closing(1001, "Server is shutting down.")
KEY_WITHDRAWN = Closing(3000, "invalid_request_error.invalid_api_key")


class _Ended(Exception):
    """The socket is closed or to be closed: the other task may stop."""


@dataclass(frozen=True, slots=True)
class Channel:
    """The two ends of an accepted WebSocket, as ASGI gives them."""

    receive: Callable[[], Awaitable[Message]]
    send: Callable[[Message], Awaitable[None]]


class Decoders(Protocol):
    """Where pictures and clips are decoded."""

    def submit(self, session_id: str, job: MediaJob) -> None: ...
    def close_session(self, session_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What every connection shares."""

    config: ServerConfig
    metrics: Metrics
    hearing: Hearing
    decoders: Decoders


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Connection:
    """One client. `run` returns when the socket is closed and everything that was its own is given back."""

    def __init__(
        self,
        session_id: str,
        principal: str,
        session: Session,
        renderer: Renderer,
        channel: Channel,
        worker: WorkerClient,
        services: Services,
    ) -> None:
        self.session_id = session_id
        self.principal = principal
        self.worker = worker
        self._session = session
        self._renderer = renderer
        self._channel = channel
        self._services = services
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._loop = asyncio.get_running_loop()
        config = services.config
        self._inbound = TokenBucket(config.inbound_bytes_per_s, config.max_inbound_bytes)
        self._closing: Closing | None = None
        self._sending_since_ms: int | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._work = _Work()
        self._has_ended = False
        self._has_peer_gone = False

    async def run(self) -> Closing:
        """Serve until either side closes; return how it ended."""
        self.worker.attach(self.session_id, self)
        try:
            if self.worker.capacity is None:  # it ended while the handshake was answered
                self._apply(self._session.worker_lost)
            self._settle()
            async with asyncio.TaskGroup() as tasks:
                for task in (self._read, self._send):
                    name = f"{task.__name__.strip('_')} {self.session_id}"
                    self._tasks.append(tasks.create_task(task(), name=name))
        except* _Ended:
            pass
        except* Exception:
            self._report_fault()
            self._closing = SERVER_ERROR
        finally:
            self._end()
        closing = self._closing or SERVER_ERROR
        if not self._has_peer_gone:
            await self._say_goodbye(closing)
        return closing

    # ---- for the gateway

    @property
    def is_idle(self) -> bool:
        """Nobody waits for anything and nothing is unsent."""
        return self._session.is_idle and self._sending_since_ms is None

    def close(self, closing: Closing) -> None:
        """Close now, whatever is unsent. Further calls change nothing."""
        if self._closing is None and not self._has_ended:
            self._closing = closing
            for task in self._tasks:
                task.cancel()

    def check_progress(self, now: int) -> None:
        """Close if the peer has taken nothing for too long."""
        since, limit_s = self._sending_since_ms, self._services.config.slow_consumer_s
        if since is not None and now - since > 1000 * limit_s:
            self.close(SLOW_CONSUMER)

    # ---- what comes from elsewhere. None of these raises: a fault ends this session and no other.

    def receive_reply(self, reply: Reply) -> None:
        if isinstance(reply, AudioDelta):
            self._count_sound(reply)
        elif isinstance(reply, TurnDone):
            self._work.done(reply)
            self._services.metrics.replies.labels(reply.reason).inc()
            say(
                log, "reply ended", session=reply.session_id, turn=reply.turn_id,
                reason=reply.reason, code=reply.code,
            )  # fmt: skip
        elif isinstance(reply, SessionFailed):
            self._work.done(reply)
            say(log, "worker session failed", session=reply.session_id, code=reply.code)
        self._apply(self._session.receive_reply, reply)

    def receive_speech(self, progress: SpeechProgress) -> None:
        self._apply(self._session.receive_speech, progress)

    def receive_decoded(self, decoded: Decoded) -> None:
        self._apply(self._session.receive_decoded, decoded)

    def worker_lost(self) -> None:
        if self._work.worker_died() >= POISON_DEATHS:
            say(log, "session ended as a suspect", logging.ERROR, session=self.session_id)
            self.close(SERVER_ERROR)
            return
        self._apply(self._session.worker_lost)

    def worker_ready(self) -> None:
        if self.worker.capacity is not None:
            self._apply(self._session.worker_ready, self.worker.capacity)

    # ---- tasks

    async def _read(self) -> None:
        metrics = self._services.metrics
        while True:
            message = await self._channel.receive()
            if message["type"] == "websocket.disconnect":
                self._has_peer_gone = True
                self._closing = self._closing or Closing(int(message.get("code") or 1005))
                raise _Ended
            if self._session.close is not None:
                continue  # all has been said but the goodbye
            text = message.get("text")
            content: str | bytes = text if text is not None else message["bytes"]
            num_bytes = len(content)
            metrics.received_events.add(1)
            metrics.received_bytes.add(num_bytes)
            parsed = (
                _parse(content)
                if num_bytes <= LONG_MESSAGE_BYTES
                else await asyncio.to_thread(_parse, content)
            )
            if isinstance(parsed, EventError):
                self._apply(self._session.receive_error, parsed)
            else:
                self._apply(self._session.receive_event, parsed)
            # Messages that have come already are taken without waiting; without a pause in between
            # somebody who sends thousands at once would be the only one served.
            await asyncio.sleep(0)
            delay_s = self._inbound.spend(now_ms(), max(num_bytes, SHORTEST_CHARGED_BYTES))
            if delay_s or self._is_behind:
                await self._wait_for_room(delay_s)

    @property
    def _is_behind(self) -> bool:
        limit = self._services.config.max_inbound_bytes
        return (
            self._session.unsent_bytes > MAX_UNSENT_BYTES
            or self.worker.num_unsent_bytes > MAX_LINK_BYTES
            or self._services.hearing.backlog_bytes(self.session_id) > limit
        )

    async def _wait_for_room(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while self._is_behind:  # noqa: ASYNC110  # the link tells nobody when it has room
            await asyncio.sleep(ROOM_POLL_S)

    async def _send(self) -> None:
        session, renderer, metrics = self._session, self._renderer, self._services.metrics
        while True:
            event = session.take_event()
            if event is None:
                if session.close is not None:
                    self._closing = Closing(session.close.code, session.close.reason)
                    raise _Ended
                self._wake.clear()
                await self._wake.wait()
                continue
            renderer.dialect = session.dialect
            for message in renderer.render(event, session.settings.delivery):
                kind = "text" if isinstance(message, str) else "bytes"
                self._sending_since_ms = now_ms()
                try:
                    await self._channel.send({"type": "websocket.send", kind: message})
                except OSError:
                    self._has_peer_gone = True
                    self._closing = self._closing or Closing(1006)
                    raise _Ended from None
                self._sending_since_ms = None
                metrics.sent_bytes.add(len(message))
            self._send_commands()  # what was held for want of room may go on

    # ---- the session's inputs and outputs

    def _apply(self, change: Callable[..., None], *what: object) -> None:
        if self._has_ended or self._closing is not None:  # its tasks may end a moment later
            return
        try:
            change(*what, now_ms())
            self._settle()
        except Exception:  # a bug in one conversation is not the others' end
            self._report_fault()
            self.close(SERVER_ERROR)

    def _settle(self) -> None:
        """Hand out what the session wants done."""
        session, services = self._session, self._services
        self._send_commands()
        if to_hear := session.speech_to_hear():
            services.hearing.hear(self.session_id, self, to_hear)
        for job in session.media_to_decode():
            services.decoders.submit(self.session_id, job)
        self._arm(session.wake_ms)
        if session.unsent_bytes or session.close is not None:
            self._wake.set()

    def _send_commands(self) -> None:
        if commands := self._session.commands_to_send():
            self._work.note(commands, now_ms())
            self.worker.send(commands)

    def _arm(self, wake_ms: int | None) -> None:
        """Have `tick` called at `wake_ms`; a timer that fires too early costs less than one set anew each time."""
        if wake_ms is None or (self._timer is not None and self._timer_ms <= wake_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ms = wake_ms
        delay_s = max(0.001, (wake_ms - now_ms()) / 1000)
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        due = self._session.wake_ms
        if due is not None and due > now_ms():
            self._arm(due)
        else:
            self._apply(self._session.tick)

    def _count_sound(self, delta: AudioDelta) -> None:
        metrics = self._services.metrics
        metrics.reply_seconds.add(len(delta.pcm) / OUTPUT_BYTES_PER_S)
        waited_ms = self._work.first_sound(delta, now_ms())
        if waited_ms is not None:
            metrics.first_sound_s.observe(waited_ms / 1000)

    def _report_fault(self) -> None:
        self._services.metrics.faults.inc()
        say(log, "session fault", logging.ERROR, has_trace=True, session=self.session_id)

    # ---- the end

    def _end(self) -> None:
        """Give back everything; nothing here waits."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        services = self._services
        try:
            self.worker.send(self._session.end())
        finally:
            self.worker.detach(self.session_id)
            services.hearing.close(self.session_id)
            services.decoders.close_session(self.session_id)

    async def _say_goodbye(self, closing: Closing) -> None:
        """Send the close frame; to a peer that has gone this does nothing."""
        close = {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
        try:
            async with asyncio.timeout(self._services.config.close_limit_s):
                await self._channel.send(close)
        except (OSError, RuntimeError, TimeoutError):  # closed already, in one way or another
            return


class _Work:
    """What the worker owes a session, seen from what went back and forth."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        """Worker sessions with input or a reply that is not done."""
        self._committed_ms: dict[tuple[str, int], int] = {}
        """Turns that wait for their first sound."""
        self._num_deaths = 0

    def note(self, commands: Iterable[Command], now: int) -> None:
        for command in commands:
            match command:
                case CommitTurn():
                    self._busy.add(command.session_id)
                    self._committed_ms[command.session_id, command.turn_id] = now
                case OpenClip() | AppendChunk() | AppendText() | AppendImage():
                    self._busy.add(command.session_id)
                case CloseSession():
                    self._forget(command.session_id)

    def done(self, reply: TurnDone | SessionFailed) -> None:
        self._forget(reply.session_id)
        self._num_deaths = 0

    def first_sound(self, delta: AudioDelta, now: int) -> int | None:
        """Milliseconds since the turn was committed, if this is its first sound."""
        committed = self._committed_ms.pop((delta.session_id, delta.turn_id), None)
        return None if committed is None else now - committed

    def worker_died(self) -> int:
        """Return how many workers in a row have died over this session's work."""
        if self._busy:
            self._num_deaths += 1
        self._busy.clear()
        self._committed_ms.clear()
        return self._num_deaths

    def _forget(self, worker_session: str) -> None:
        self._busy.discard(worker_session)
        for key in [k for k in self._committed_ms if k[0] == worker_session]:
            del self._committed_ms[key]


def _parse(content: str | bytes) -> ClientEvent | EventError:
    try:
        return parse_text(content) if isinstance(content, str) else parse_binary(content)
    except EventError as error:
        return error
