"""The gateway's end of a worker, fed with packets by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from server.metrics import Metrics
from server.worker_client import WorkerClient, WorkerState
from streaming.errors import LinkError, WorkerLost
from streaming.packets import (
    PROTOCOL,
    Capacity,
    CloseSession,
    Hello,
    Loading,
    Ready,
    TextDelta,
    WorkerStatus,
)

if TYPE_CHECKING:
    from streaming.packets import Reply

CAPACITY = Capacity(4, 100, 16, 1024, ("Chelsie",))


class Link:
    """Gives packets, takes commands."""

    def __init__(self, *packets: Reply) -> None:
        self.packets = [*packets]
        self.sent: list[Any] = []
        self.is_aborted = False
        self.fault: Exception | None = None
        self.num_unsent_bytes = 17

    async def receive(self) -> Reply | None:
        return self.packets.pop(0) if self.packets else None

    def send(self, packet: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append(packet)

    def abort(self) -> None:
        self.is_aborted = True


class Port:
    def __init__(self) -> None:
        self.told: list[object] = []

    def receive_reply(self, reply: Reply) -> None:
        self.told.append(reply)

    def worker_lost(self) -> None:
        self.told.append("lost")

    def worker_ready(self) -> None:
        self.told.append("ready")


def client() -> WorkerClient:
    return WorkerClient(0, Metrics(), lambda: None)


def serve(made: WorkerClient, *packets: Reply) -> None:
    asyncio.run(made.serve(Link(*packets)))  # type: ignore[arg-type]  # a link in all that counts


def test_a_worker_says_hello_loads_and_is_ready() -> None:
    made, port = client(), Port()
    made.attach("s", port)
    serve(made, Hello(PROTOCOL, "1", "m"), Loading("weights", 0.5))
    assert (made.state, made.model) == (WorkerState.LOADING, "m")
    assert made.describe()["loading"] == "weights"
    serve(made, Ready(CAPACITY))
    assert made.is_ready and made.capacity == CAPACITY and port.told == ["ready"]
    made.lost()
    assert made.state is WorkerState.STOPPED and made.capacity is None
    assert port.told == ["ready", "lost"]
    made.lost()  # once is enough
    assert port.told == ["ready", "lost"]


def test_replies_find_the_session_they_belong_to() -> None:
    made, port, other = client(), Port(), Port()
    made.attach("sess_1", port)
    made.attach("sess_1.x", other)
    deltas = [TextDelta(name, 0, "a") for name in ("sess_1", "sess_1.2", "sess_1.x", "sess_2.1")]
    serve(made, *deltas)
    assert port.told == deltas[:2]
    assert other.told == [deltas[2]]
    made.detach("sess_1")
    made.detach("sess_1")
    serve(made, *deltas)
    assert len(port.told) == 2


def test_another_protocol_is_refused() -> None:
    with pytest.raises(LinkError, match="install the same version"):
        serve(client(), Hello(PROTOCOL + 1, "1", "m"))


def test_commands_go_only_to_a_worker_that_is_ready() -> None:
    made, link = client(), Link()
    made._link = link  # type: ignore[assignment]
    made.send([CloseSession("s")])
    assert link.sent == [] and made.num_unsent_bytes == 17
    made._take_ready(Ready(CAPACITY))
    made.send([CloseSession("s")])
    assert link.sent == [CloseSession("s")]
    link.fault = WorkerLost("does not read")
    made.send([CloseSession("s")])
    assert link.is_aborted
    made.lost()
    made.send([CloseSession("s")])
    assert made.num_unsent_bytes == 0


def test_progress_is_steps_while_work_waits() -> None:
    made = client()
    assert made.judge(5, 20) == (0, 0)
    made._take_ready(Ready(CAPACITY))

    def status(steps: int, *, has_work: bool) -> WorkerStatus:
        return WorkerStatus(steps, 0, has_work, 1, 50, 10, 0)

    made._receive(status(1, has_work=True))
    made._step_s -= 30
    made._receive(status(1, has_work=True))
    assert made.judge(5, 20)[1] > 20
    assert made.state is WorkerState.STUCK
    made._receive(status(2, has_work=True))
    assert made.judge(5, 20)[1] < 1
    assert made.is_ready
    made._step_s -= 30
    made._receive(status(2, has_work=False))  # nothing to do is no hang
    made.judge(5, 20)
    assert made.is_ready
    made._heard_s -= 6
    made.judge(5, 20)
    assert made.state is WorkerState.STUCK
    assert made.describe()["step_age_ms"] == 0
