"""Caller: one simulated user on one WebSocket, who speaks, listens, thinks and interrupts as the scenario says."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pybase64
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from benchmarks.load.dialogue import Dialogue, Event, Turn, record
from benchmarks.load.microphone import Microphone

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.load.clips import Clip
    from benchmarks.load.lag import LagProbe
    from benchmarks.load.records import TurnRecord
    from benchmarks.load.scenario import Behaviour, Scenario

OUTPUT_RATE = 24_000
OPEN_LIMIT_S = 20.0
POLL_S = 0.01
SLOW_BUFFER_BYTES = 16_384
MAX_QUEUE = 256


class Answered(Enum):
    """How listening to a reply ended."""

    HEARD = auto()
    INTERRUPTED = auto()
    GAVE_UP = auto()


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds of a reply a caller hears before leaving it, and how."""

    listens_s: float
    then: Literal["voice", "cancel", "enough"]


class CallFault(Exception):
    """A call that could not be made or broke; the message says how."""


@dataclass(frozen=True, slots=True)
class Line:
    """How to reach a server."""

    url: str
    api_key: str | None = None
    model: str | None = None


@dataclass(slots=True)
class Stage:
    """What all callers of a level share."""

    scenario: Scenario
    line: Line
    clips: dict[str, list[Clip]]
    """By name of the group."""
    pictures: Sequence[bytes]
    clock: Callable[[], float]
    probe: LagProbe
    until_s: float
    """No turn begins after it."""
    on_turn: Callable[[TurnRecord], None]
    max_turns: int | None = None


class Caller:
    """One simulated user. `call` may be repeated: who was cut off dials again."""

    def __init__(self, number: int, behaviour: Behaviour, stage: Stage, rng: random.Random) -> None:
        self.number = number
        self.behaviour = behaviour
        self.stage = stage
        self.num_turns = 0
        self._rng = rng
        self._clock = stage.clock
        self._is_binary = stage.scenario.transport == "binary"
        self._clips = _endless(stage.clips[behaviour.name], rng)
        self._reset()

    def _reset(self) -> None:
        self._dialogue = Dialogue(self.stage.scenario.prebuffer_ms / 1000, OUTPUT_RATE)
        self._configured = asyncio.Event()
        self._unreported: list[Turn] = []

    @property
    def is_done(self) -> bool:
        """Time is up, or as many turns as wanted have been held."""
        has_enough = self.stage.max_turns is not None and self.num_turns >= self.stage.max_turns
        return has_enough or (self.num_turns > 0 and self._clock() >= self.stage.until_s)

    async def call(self) -> None:
        """Hold a whole call, from dialling to hanging up.

        Raises:
            CallFault: it could not be made, or broke; the turns until then are reported all the same.
        """
        self._reset()
        try:
            async with connect_to(self.stage.line, self.behaviour.read_bytes_per_s > 0) as link:
                await self._hold(link)
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed) as fault:
            raise CallFault(_why(fault)) from None
        except ExceptionGroup as group:
            first = _first(group)
            if not isinstance(first, CallFault | OSError | TimeoutError | ConnectionClosed):
                raise
            for turn in self._unreported:
                turn.errors.append(_why(first))
                self._report(turn)
            raise CallFault(_why(first)) from None

    async def _hold(self, link: ClientConnection) -> None:
        async def send_sound(pcm: bytes) -> None:
            await self._send_with_bytes(link, {"type": "input_audio_buffer.append"}, "audio", pcm)

        async def commit() -> None:
            await self._send(link, {"type": "input_audio_buffer.commit"})
            await self._send(link, {"type": "response.create"})
            self._dialogue.decide(self._clock())

        scenario = self.stage.scenario
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._read(link), name="read")]
            await self._send(link, self._session())
            async with asyncio.timeout(OPEN_LIMIT_S):
                await self._configured.wait()
            microphone = Microphone(
                scenario.rate,
                scenario.frame_ms / 1000,
                send_sound,
                self._clock,
                self.stage.probe.late_s,
                on_spoken=commit if self.behaviour.turn_detection == "none" else None,
            )
            running.append(tasks.create_task(microphone.run(), name="microphone"))
            if self.behaviour.video_fps:
                running.append(tasks.create_task(self._film(link, microphone), name="camera"))
            if scenario.playback_acks:
                running.append(tasks.create_task(self._acknowledge(link), name="acks"))
            await self._converse(link, microphone)
            for task in running:
                task.cancel()

    # ---- the conversation

    async def _converse(self, link: ClientConnection, microphone: Microphone) -> None:
        """Turn after turn; an interrupted one is told of when its end is known, which is in the middle of the next."""
        interrupted: Turn | None = None
        while not self.is_done:
            if interrupted is None and self._dialogue.turns:
                await asyncio.sleep(self._rng.uniform(*self.behaviour.think_ms) / 1000)
            turn = self._dialogue.begin_turn(microphone.say(next(self._clips)))
            self._unreported.append(turn)
            self.num_turns += 1
            if interrupted is not None:
                await self._hear_the_end_of(interrupted)
            answered = await self._listen(link, turn)
            if answered is Answered.INTERRUPTED and self.is_done:
                self._unreported.remove(turn)  # time was up in between: no words will interrupt it
                return
            if answered is Answered.INTERRUPTED:
                interrupted = turn
                continue
            interrupted = None
            self._report(turn)
            if answered is Answered.GAVE_UP:
                # Whatever comes late would be taken for the answer to the next words: hang up, as one would.
                return

    async def _hear_the_end_of(self, turn: Turn) -> None:
        await self._wait(lambda: turn.reply is None or turn.reply.is_over(self._clock()))
        self._report(turn)

    async def _listen(self, link: ClientConnection, turn: Turn) -> Answered:
        """Hear the reply out, or leave in the middle of it."""
        patience = self._patience()

        def has_heard_enough() -> bool:
            now_s, audible_s = self._clock(), self._dialogue.audible_s()
            return (
                now_s > turn.spoken.end_s
                and audible_s is not None
                and now_s >= audible_s + patience.listens_s
                and turn.reply is not None
                and turn.reply.is_in_ear(now_s)
            )

        def is_answered() -> bool:
            return self._dialogue.is_answered(self._clock())

        speaking_s = max(0.0, turn.spoken.end_s - self._clock())
        if not await self._wait(lambda: is_answered() or has_heard_enough(), speaking_s):
            return Answered.GAVE_UP
        if is_answered():
            return Answered.HEARD
        if patience.then == "voice":
            return Answered.INTERRUPTED
        for event in self._dialogue.press_stop(self._clock(), patience.then):
            await self._send(link, event)
        is_over = await self._wait(is_answered)
        return Answered.HEARD if is_over else Answered.GAVE_UP

    def _patience(self) -> Patience:
        """How long this reply will be listened to. Every draw is made, so that all targets see the same callers."""
        behaviour, rng = self.behaviour, self._rng
        after_s = rng.uniform(*behaviour.interrupt_after_ms) / 1000
        interrupts = rng.random() < behaviour.interrupt_share
        # In the last turn nobody would speak the words that interrupt.
        if interrupts and not (self.is_done and behaviour.interrupt_by == "voice"):
            return Patience(after_s, behaviour.interrupt_by)
        return Patience(behaviour.listen_at_most_s, "enough")

    async def _wait(self, condition: Callable[[], bool], extra_s: float = 0.0) -> bool:
        """Wait for something that events or the time bring about; False when the patience ran out.

        The clock is looked at often because the end of a reply in the ear is no event.
        """
        give_up_s = self._clock() + self.stage.scenario.reply_timeout_s + extra_s
        while not condition():
            if self._clock() > give_up_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _report(self, turn: Turn) -> None:
        self._unreported.remove(turn)
        made = record(turn, rate=OUTPUT_RATE)
        made.caller, made.group = self.number, self.behaviour.name
        made.is_judged = self.behaviour.is_judged
        heard_s = turn.spoken.end_s + (made.first_audio_ms or 0) / 1000
        made.lag_ms = round(1000 * self.stage.probe.worst_between(turn.spoken.end_s, heard_s), 2)
        self.stage.on_turn(made)

    # ---- the line

    def _session(self) -> Event:
        scenario, behaviour = self.stage.scenario, self.behaviour
        detection: Event | None = None
        if behaviour.turn_detection != "none":
            detection = {"type": behaviour.turn_detection}
            if behaviour.silence_duration_ms is not None:
                detection["silence_duration_ms"] = behaviour.silence_duration_ms
        output: Event = {"format": {"type": "audio/pcm", "rate": OUTPUT_RATE}}
        if self._is_binary:
            output["delivery"] = "binary"
        session: Event = {
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": scenario.rate},
                    "turn_detection": detection,
                },
                "output": output,
            },
        }
        if scenario.instructions is not None:
            session["instructions"] = scenario.instructions
        if scenario.max_output_tokens is not None:
            session["max_output_tokens"] = scenario.max_output_tokens
        return {"type": "session.update", "session": session}

    async def _read(self, link: ClientConnection) -> None:
        async for message in link:
            now_s = self._clock()
            event, pcm = parse(message)
            if event["type"] == "session.updated":
                self._configured.set()
            elif event["type"] == "error" and not self._configured.is_set():
                raise CallFault(f"{event['error'].get('code')}: {event['error']['message']}")
            for answer in self._dialogue.receive(now_s, event, pcm):
                await self._send(link, answer)
            if self.behaviour.read_bytes_per_s:
                await asyncio.sleep(len(message) / self.behaviour.read_bytes_per_s)
        raise CallFault(f"the server hung up: {link.close_code} {link.close_reason}".rstrip())

    async def _film(self, link: ClientConnection, microphone: Microphone) -> None:
        """Send pictures at an even pace, each with its time on the input clock."""
        period_s, begun_s, count = 1 / self.behaviour.video_fps, self._clock(), 0
        while True:
            count += 1
            await asyncio.sleep(max(0.0, begun_s + count * period_s - self._clock()))
            event = {
                "type": "input_image_buffer.append",
                "timestamp_ms": round(1000 * microphone.num_samples / self.stage.scenario.rate),
            }
            picture = self.stage.pictures[count % len(self.stage.pictures)]
            await self._send_with_bytes(link, event, "image", picture)

    async def _acknowledge(self, link: ClientConnection) -> None:
        while True:
            await asyncio.sleep(1)
            if event := self._dialogue.heard(self._clock()):
                await self._send(link, event)

    async def _send(self, link: ClientConnection, event: Event) -> None:
        await link.send(json.dumps(event))

    async def _send_with_bytes(
        self, link: ClientConnection, event: Event, name: str, content: bytes
    ) -> None:
        if self._is_binary:
            await link.send(json.dumps(event).encode() + b"\n" + content)
        else:
            await self._send(link, event | {name: pybase64.b64encode(content).decode()})


def parse(message: str | bytes) -> tuple[Event, bytes]:
    """A server message as its event and, of an audio delta, the decoded sound."""
    if isinstance(message, bytes):
        head, _, pcm = message.partition(b"\n")
        return json.loads(head), pcm
    event: Event = json.loads(message)
    if event["type"] in ("response.output_audio.delta", "response.audio.delta"):
        return event, pybase64.b64decode(event["delta"])
    return event, b""


def connect_to(line: Line, is_slow: bool) -> connect:
    """A connection to be entered; a slow reader gets small buffers, or the kernel would read ahead for it."""
    options: dict[str, Any] = {}
    if is_slow:
        options = {"sock": slow_socket(line.url), "max_queue": 1}
    url = line.url
    if line.model is not None:
        url += ("&" if "?" in url else "?") + f"model={line.model}"
    headers = {"Authorization": f"Bearer {line.api_key}"} if line.api_key else {}
    return connect(
        url,
        additional_headers=headers,
        compression=None,
        max_size=None,
        open_timeout=OPEN_LIMIT_S,
        close_timeout=2,
        ping_interval=20,
        ping_timeout=40,
        **({"max_queue": MAX_QUEUE} | options),
    )


def slow_socket(url: str) -> socket.socket:
    """A connected socket with a small receive buffer, which must be set before connecting."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    family, kind, protocol, _, address = socket.getaddrinfo(
        parts.hostname, port, type=socket.SOCK_STREAM
    )[0]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    made.settimeout(OPEN_LIMIT_S)
    made.connect(address)
    made.setblocking(False)
    return made


def _endless(clips: list[Clip], rng: random.Random) -> Iterator[Clip]:
    """Every clip once in random order, then all over again."""
    while True:
        order = list(clips)
        rng.shuffle(order)
        yield from order


def _first(fault: BaseException) -> BaseException:
    """The first fault of a group that is none itself."""
    return _first(fault.exceptions[0]) if isinstance(fault, BaseExceptionGroup) else fault


def _why(fault: BaseException) -> str:
    if isinstance(fault, CallFault):
        return str(fault)
    if isinstance(fault, TimeoutError):
        return f"no answer within {OPEN_LIMIT_S:.0f} s"
    if isinstance(fault, ConnectionClosed) and fault.rcvd is not None:
        return f"the server hung up: {fault.rcvd.code} {fault.rcvd.reason}".rstrip()
    response = getattr(fault, "response", None)
    if response is not None:
        body = bytes(response.body or b"")[:200].decode(errors="replace")
        return f"HTTP {response.status_code}: {body}"
    return f"{type(fault).__name__}: {fault}"
