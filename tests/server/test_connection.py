"""One connection between a scripted socket and a scripted session: who waits for whom, and what is given back."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from server.config import ServerConfig
from server.connection import (
    SHORTEST_CHARGED_BYTES,
    SHUTTING_DOWN,
    SLOW_CONSUMER,
    Channel,
    Closing,
    Connection,
    Services,
    now_ms,
)
from server.dialect import Dialect
from server.events import EventError, InputAudioClear
from server.lifetime import Close
from server.media.jobs import Decoded
from server.metrics import Metrics
from server.settings import Settings, Voices
from server.worker_client import WorkerClient
from streaming.packets import (
    AudioDelta,
    Capacity,
    CloseSession,
    CommitTurn,
    DoneReason,
    OpenSession,
    TurnDone,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CAPACITY = Capacity(4, 100, 16, 1024, ("Chelsie",))
CLEAR = '{"type":"input_audio_buffer.clear"}'


class ScriptedSession:
    """Writes down its inputs; its outputs are whatever the test puts there."""

    def __init__(self) -> None:
        self.inputs: list[object] = []
        self.events: deque[str] = deque()
        self.commands: list[object] = []
        self.close: Close | None = None
        self.wake_ms: int | None = None
        self.settings = Settings.default(Dialect.GA, Voices(("Chelsie",)))
        self.dialect = Dialect.GA
        self.is_idle = True
        self.unsent_bytes = 1  # the sender always looks
        self.fault: Exception | None = None

    def _take(self, what: object, _now: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.inputs.append(what)

    receive_event = receive_error = receive_reply = receive_speech = receive_decoded = _take

    def worker_lost(self, now: int) -> None:
        self._take("lost", now)

    def worker_ready(self, capacity: Capacity, now: int) -> None:
        self._take(("ready", capacity), now)

    def tick(self, now: int) -> None:
        self.wake_ms = None
        self._take("tick", now)

    def take_event(self) -> str | None:
        return self.events.popleft() if self.events else None

    def commands_to_send(self) -> list[object]:
        commands, self.commands = self.commands, []
        return commands

    def speech_to_hear(self) -> list[bytes]:
        return []

    def media_to_decode(self) -> list[object]:
        return []

    def end(self) -> list[object]:
        return [CloseSession("s.1")]


class Verbatim:
    """Renders an event as itself."""

    dialect = Dialect.GA

    def render(self, event: str, delivery: str) -> list[str]:
        return [event]


class ScriptedWorker(WorkerClient):
    """Takes commands and gives none back."""

    def __init__(self) -> None:
        super().__init__(0, Metrics(), lambda: None)
        self.capacity = CAPACITY
        self.sent: list[object] = []
        self.unsent = 0

    def send(self, commands: Any) -> None:
        self.sent.extend(commands)

    @property
    def num_unsent_bytes(self) -> int:
        return self.unsent


class Deaf:
    """Hearing and decoders that note who left."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.backlog = 0

    def close(self, session_id: str) -> None:
        self.left.append(session_id)

    def close_session(self, session_id: str) -> None:
        self.left.append(session_id)

    def backlog_bytes(self, session_id: str) -> int:
        return self.backlog


@dataclass
class Scene:
    """Everything around a connection."""

    session: ScriptedSession
    worker: ScriptedWorker
    deaf: Deaf
    inbox: asyncio.Queue[dict[str, Any]]
    outbox: list[dict[str, Any]]
    may_send: asyncio.Event
    connection: Connection
    metrics: Metrics

    def say(self, text: str) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    def hang_up(self, code: int = 1000) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code})

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not is_so():  # noqa: ASYNC110  # many things, none of which tells
                await asyncio.sleep(0)

    @property
    def sent(self) -> list[str]:
        return [m["text"] for m in self.outbox if m["type"] == "websocket.send"]

    @property
    def closed(self) -> list[tuple[int, str]]:
        return [(m["code"], m["reason"]) for m in self.outbox if m["type"] == "websocket.close"]


def play(act: Callable[[Scene], Awaitable[None]], **settings: Any) -> tuple[Scene, Closing]:
    """Run a connection while `act` happens to it; it must end by what `act` did."""

    async def run() -> tuple[Scene, Closing]:
        num_tasks = len(asyncio.all_tasks())
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        outbox: list[dict[str, Any]] = []
        may_send = asyncio.Event()
        may_send.set()

        async def send(message: dict[str, Any]) -> None:
            await may_send.wait()
            outbox.append(message)

        session, worker, deaf, metrics = ScriptedSession(), ScriptedWorker(), Deaf(), Metrics()
        services = Services(ServerConfig(**settings), metrics, deaf, deaf)  # type: ignore[arg-type]
        connection = Connection(
            "s",
            "ana",
            session,
            Verbatim(),
            Channel(inbox.get, send),
            worker,
            services,  # type: ignore[arg-type]
        )
        scene = Scene(session, worker, deaf, inbox, outbox, may_send, connection, metrics)
        running = asyncio.create_task(connection.run())
        await act(scene)
        async with asyncio.timeout(5):
            closing = await running
        assert len(asyncio.all_tasks()) == num_tasks
        assert deaf.left == ["s", "s"]
        assert worker.num_sessions == 0
        assert worker.sent[-1:] == [CloseSession("s.1")]
        return scene, closing

    return asyncio.run(run())


def test_messages_become_inputs_and_events_messages() -> None:
    async def act(scene: Scene) -> None:
        scene.session.events += ["one", "two"]
        scene.session.commands = [OpenSession("s.1")]
        scene.say(CLEAR)
        scene.say("no json")
        await scene.until(lambda: len(scene.session.inputs) == 2)
        scene.hang_up(1000)

    scene, closing = play(act)
    assert isinstance(scene.session.inputs[0], InputAudioClear)
    assert isinstance(scene.session.inputs[1], EventError)
    assert scene.sent == ["one", "two"]
    assert scene.worker.sent[0] == OpenSession("s.1")
    assert closing == Closing(1000)
    assert scene.closed == []  # who has hung up needs no goodbye


def test_an_event_is_taken_only_when_the_socket_can_take_it() -> None:
    async def act(scene: Scene) -> None:
        scene.may_send.clear()
        scene.session.events += ["stale 1", "stale 2", "stale 3"]
        await scene.until(lambda: len(scene.session.events) == 2)
        scene.session.events.clear()  # an interruption
        scene.session.events.append("done")
        scene.may_send.set()
        await scene.until(lambda: len(scene.sent) == 2)
        scene.hang_up()

    scene, _ = play(act)
    assert scene.sent == ["stale 1", "done"]


def test_what_the_session_says_last_is_sent_before_it_closes() -> None:
    async def act(scene: Scene) -> None:
        scene.session.events.append("session expired")
        scene.session.close = Close(1001, "too long")
        scene.say(CLEAR)

    scene, closing = play(act)
    assert scene.sent == ["session expired"]
    assert scene.closed == [(1001, "too long")]
    assert closing == Closing(1001, "too long")


def test_after_the_session_closed_nothing_more_is_taken() -> None:
    async def act(scene: Scene) -> None:
        scene.may_send.clear()
        scene.session.events.append("last")
        scene.session.close = Close(1008, "too_many_errors")
        for _ in range(10):
            scene.say(CLEAR)
        await scene.until(scene.inbox.empty)
        scene.may_send.set()

    scene, _ = play(act)
    assert scene.session.inputs == []


def test_a_fault_in_one_session_closes_it_and_says_no_more() -> None:
    async def act(scene: Scene) -> None:
        scene.say(CLEAR)
        await scene.until(lambda: bool(scene.session.inputs))
        scene.session.fault = RuntimeError("a bug")
        for _ in range(2):  # the second comes before its tasks have ended
            scene.connection.receive_decoded(Decoded("job"))

    scene, closing = play(act)
    assert closing == Closing(1011, "server_error")
    assert scene.closed == [(1011, "server_error")]
    assert scene.metrics.registry.get_sample_value("parley_session_faults_total") == 1


def test_a_fault_in_rendering_closes_too() -> None:
    async def act(scene: Scene) -> None:
        scene.session.events.append(17)  # type: ignore[arg-type]  # no message
        scene.say(CLEAR)

    scene, closing = play(act)
    assert closing.code == 1011


def test_the_gateway_closes_at_once_whatever_is_unsent() -> None:
    async def act(scene: Scene) -> None:
        scene.may_send.clear()
        scene.session.events.append("unsent")
        await scene.until(lambda: not scene.session.events)
        scene.connection.close(SHUTTING_DOWN)
        scene.connection.close(SLOW_CONSUMER)  # too late
        scene.may_send.set()

    scene, closing = play(act)
    assert closing == SHUTTING_DOWN
    assert scene.closed == [(1001, "Server is shutting down.")]


def test_who_takes_nothing_for_too_long_is_closed() -> None:
    async def act(scene: Scene) -> None:
        scene.may_send.clear()
        scene.session.events.append("unsent")
        scene.connection.check_progress(now_ms() + 10**9)  # nothing is being sent yet
        await scene.until(lambda: not scene.session.events)
        scene.connection.check_progress(now_ms() + 900)
        assert scene.connection._closing is None
        scene.connection.check_progress(now_ms() + 1100)
        assert scene.connection._closing == SLOW_CONSUMER

    scene, closing = play(act, slow_consumer_s=1, close_limit_s=0.05)
    assert closing == SLOW_CONSUMER
    assert scene.closed == []  # it could not be told


@pytest.mark.parametrize("cause", ["link", "speech", "rate", "unsent"])
def test_reading_waits_while_what_was_read_is_not_done(cause: str) -> None:
    async def act(scene: Scene) -> None:
        if cause == "link":
            scene.worker.unsent = 10**9
        elif cause == "speech":
            scene.deaf.backlog = 10**9
        elif cause == "unsent":
            scene.session.unsent_bytes = 10**9
        scene.say(CLEAR + " " * 9000 * (cause == "rate"))
        scene.say(CLEAR)
        await scene.until(lambda: len(scene.session.inputs) == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(scene.session.inputs) == 1
        scene.worker.unsent = scene.deaf.backlog = scene.session.unsent_bytes = 0
        await scene.until(lambda: len(scene.session.inputs) == 2)
        scene.hang_up()

    play(act, max_inbound_bytes=2 * SHORTEST_CHARGED_BYTES, inbound_bytes_per_s=10_000)


def test_short_messages_are_charged_for_their_work() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(6):
            scene.say(CLEAR)
        await scene.until(lambda: len(scene.session.inputs) == 3)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(scene.session.inputs) == 3  # the burst, and one on credit
        scene.connection.close(SHUTTING_DOWN)

    play(act, max_inbound_bytes=2 * SHORTEST_CHARGED_BYTES, inbound_bytes_per_s=1000)


def test_between_messages_that_have_come_the_others_have_their_turn() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(100):
            scene.say(CLEAR)
        seen = [0]
        while seen[-1] < 100:
            seen.append(len(scene.session.inputs))
            await asyncio.sleep(0)
        assert max(later - sooner for sooner, later in pairwise(seen)) <= 1
        scene.hang_up()

    play(act)


def test_the_timer_ticks_when_the_session_asked_for_it() -> None:
    async def act(scene: Scene) -> None:
        scene.session.wake_ms = now_ms() + 10_000
        scene.say(CLEAR)
        await scene.until(lambda: len(scene.session.inputs) == 1)
        scene.session.wake_ms = asked = now_ms() + 20  # earlier than what it asked for before
        scene.say(CLEAR)
        await scene.until(lambda: scene.session.inputs[-1] == "tick")
        assert now_ms() >= asked
        scene.hang_up()

    play(act)


def test_a_long_message_is_parsed_beside_the_loop() -> None:
    async def act(scene: Scene) -> None:
        scene.say(CLEAR + " " * 300_000)
        scene.say(CLEAR)
        await scene.until(lambda: len(scene.session.inputs) == 2)
        scene.hang_up()

    play(act)


def test_the_worker_goes_and_comes_back() -> None:
    async def act(scene: Scene) -> None:
        await scene.until(lambda: scene.worker.num_sessions == 1)
        scene.worker.lost()
        scene.worker.capacity = CAPACITY
        scene.connection.worker_ready()
        await scene.until(lambda: len(scene.session.inputs) == 2)
        scene.hang_up()

    scene, _ = play(act)
    assert scene.session.inputs == ["lost", ("ready", CAPACITY)]


def test_a_worker_that_went_during_the_handshake_is_told() -> None:
    async def act(scene: Scene) -> None:
        scene.worker.capacity = None
        await scene.until(lambda: scene.session.inputs == ["lost"])
        scene.hang_up()

    play(act)


def test_f4_a_session_two_workers_died_over_is_not_rebuilt() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(2):
            scene.session.commands = [CommitTurn("s.1", 0)]
            scene.say(CLEAR)
            await scene.until(lambda: not scene.session.commands)
            scene.connection.worker_lost()

    scene, closing = play(act)
    assert scene.session.inputs.count("lost") == 1
    assert closing == Closing(1011, "server_error")


def test_f4_a_reply_in_between_clears_the_suspicion() -> None:
    async def act(scene: Scene) -> None:
        for _ in range(3):
            scene.session.commands = [CommitTurn("s.1", 0)]
            scene.say(CLEAR)
            await scene.until(lambda: not scene.session.commands)
            scene.connection.worker_lost()
            scene.connection.receive_reply(TurnDone("s.1", 0, DoneReason.COMPLETED, Usage()))
        scene.connection.worker_lost()  # idle: not its fault
        scene.hang_up()

    scene, _ = play(act)
    assert scene.session.inputs.count("lost") == 4


def test_the_first_sound_of_a_turn_is_timed_once() -> None:
    async def act(scene: Scene) -> None:
        scene.session.commands = [CommitTurn("s.1", 3)]
        scene.say(CLEAR)
        await scene.until(lambda: not scene.session.commands)
        for start in (0, 2400):
            scene.connection.receive_reply(AudioDelta("s.1", 3, start, bytes(4800)))
        scene.connection.receive_reply(AudioDelta("s.1", 2, 0, bytes(4800)))
        scene.hang_up()

    scene, _ = play(act)
    value = scene.metrics.registry.get_sample_value
    assert value("parley_first_sound_seconds_count") == 1
    assert value("parley_reply_seconds_total") == pytest.approx(0.3)


def test_a_peer_that_vanishes_while_being_told_ends_it() -> None:
    async def act(scene: Scene) -> None:
        async def vanish(_: dict[str, Any]) -> None:
            raise OSError("gone")

        scene.connection._channel = Channel(scene.inbox.get, vanish)
        scene.session.events.append("unheard")
        scene.say(CLEAR)

    _, closing = play(act)
    assert closing == Closing(1006)


def test_nothing_reaches_a_session_that_has_ended() -> None:
    async def act(scene: Scene) -> None:
        scene.hang_up()

    scene, _ = play(act)
    scene.connection.receive_reply(AudioDelta("s.1", 0, 0, b"\0\0"))
    scene.connection.receive_decoded(None)  # type: ignore[arg-type]  # anything
    assert scene.session.inputs == []
