"""The gateway's end of one worker: what state it is in, commands to it, replies to the sessions they belong to."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from server.logs import say
from streaming.errors import WorkerLost
from streaming.packets import Hello, Loading, Ready, WorkerStatus, require_protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.metrics import Metrics
    from streaming.packets import Capacity, Command, Reply
    from streaming.transport import AsyncLink

log = logging.getLogger(__name__)


class WorkerState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STUCK = "stuck"
    """Ready once; now it gives no sign of life, or work waits and nothing moves."""


class Port(Protocol):
    """What a session offers to its worker's replies. Nothing here may raise or block."""

    def receive_reply(self, reply: Reply) -> None: ...
    def worker_lost(self) -> None: ...
    def worker_ready(self) -> None: ...


class WorkerClient:
    """One worker as the sessions see it. The supervisor tells it of links and ends.

    Args:
        index: which of the gateway's workers.
        changed: called after every change of state or capacity.
    """

    def __init__(self, index: int, metrics: Metrics, changed: Callable[[], None]) -> None:
        self.index = index
        self.state = WorkerState.STOPPED
        self.capacity: Capacity | None = None
        self.status: WorkerStatus | None = None
        self.progress: Loading | None = None
        self.model = ""
        self._metrics = metrics
        self._changed = changed
        self._ports: dict[str, Port] = {}
        self._link: AsyncLink[Reply] | None = None
        self._heard_s = self._step_s = time.monotonic()

    # ---- for sessions

    @property
    def num_sessions(self) -> int:
        return len(self._ports)

    @property
    def is_ready(self) -> bool:
        return self.state is WorkerState.READY

    def attach(self, session_id: str, port: Port) -> None:
        """Deliver replies for `session_id` and for `session_id.anything` to `port`."""
        self._ports[session_id] = port

    def detach(self, session_id: str) -> None:
        self._ports.pop(session_id, None)

    def send(self, commands: Iterable[Command]) -> None:
        """Send in order. Without a worker nothing happens: the sessions are told when it is lost, and rebuild."""
        if self._link is None or self.state not in (WorkerState.READY, WorkerState.STUCK):
            return
        try:
            for command in commands:
                self._link.send(command)
        except WorkerLost as fault:
            log.error(
                "link given up: %s", fault
            )  # `receive` ends, and the supervisor takes it from there
            self._link.abort()

    @property
    def num_unsent_bytes(self) -> int:
        return 0 if self._link is None else self._link.num_unsent_bytes

    # ---- for the supervisor

    def starting(self) -> None:
        self._set(WorkerState.STARTING)

    async def serve(self, link: AsyncLink[Reply]) -> None:
        """Take in everything the worker says until the link ends.

        Raises:
            LinkError: it speaks another protocol, or garbage.
        """
        self._link = link
        try:
            while (reply := await link.receive()) is not None:
                self._receive(reply)
        finally:
            self._link = None

    def lost(self) -> None:
        """The worker has ended: every session is told, at once."""
        was_up = self.capacity is not None
        if self._link is not None:
            self._link.abort()  # whatever it still says belongs to sessions that will be rebuilt
        self._link = self.capacity = self.status = self.progress = None
        self._set(WorkerState.STOPPED)
        if was_up:
            for port in list(self._ports.values()):
                port.worker_lost()

    def judge(self, tick_missing_s: float, step_stuck_s: float) -> tuple[float, float]:
        """Set STUCK or READY by what was heard; return the seconds since the last sign of life and since the last
        step if work waits for one."""
        if self.state not in (WorkerState.READY, WorkerState.STUCK):
            return 0.0, 0.0
        now_s = time.monotonic()
        silent_s = now_s - self._heard_s
        waiting_s = now_s - self._step_s
        is_stuck = silent_s > tick_missing_s or waiting_s > step_stuck_s
        self._set(WorkerState.STUCK if is_stuck else WorkerState.READY)
        return silent_s, waiting_s

    @property
    def lateness_s(self) -> float:
        """How long its most neglected reply has been due."""
        return 0.0 if self.status is None else self.status.lateness_ms / 1000

    def describe(self) -> dict[str, object]:
        """What a health check shows."""
        status = self.status
        return {
            "worker": self.index,
            "state": self.state,
            "sessions": self.num_sessions,
            "step_age_ms": None if status is None else status.last_step_age_ms,
            "loading": None if self.progress is None else self.progress.stage,
        }

    def _receive(self, reply: Reply) -> None:
        self._heard_s = time.monotonic()
        match reply:
            case WorkerStatus():
                self._take_status(reply)
            case Hello():
                require_protocol(reply)
                self.model = reply.model
                self._set(WorkerState.LOADING)
            case Loading():
                self.progress = reply
                say(
                    log,
                    "worker loading",
                    worker=self.index,
                    state=reply.stage,
                    progress=reply.progress,
                )
                self._changed()
            case Ready():
                self._take_ready(reply)
            case _:
                self._deliver(reply)

    def _deliver(self, reply: Reply) -> None:
        session_id: str = getattr(reply, "session_id", "")
        port = self._ports.get(session_id) or self._ports.get(session_id.rpartition(".")[0])
        if port is not None:  # else its session has ended
            port.receive_reply(reply)

    def _take_ready(self, ready: Ready) -> None:
        self.capacity, self.progress = ready.capacity, None
        self._step_s = time.monotonic()
        self._set(WorkerState.READY)
        for port in list(self._ports.values()):
            port.worker_ready()

    def _take_status(self, status: WorkerStatus) -> None:
        before, self.status = self.status, status
        if not status.has_work or before is None or before.step_count != status.step_count:
            self._step_s = time.monotonic()
        label = str(self.index)
        self._metrics.worker_pages_free.labels(label).set(status.num_pages_free)
        self._metrics.worker_memory.labels(label).set(status.memory_bytes)
        self._metrics.worker_steps.labels(label).set(status.step_count)
        self._metrics.worker_lateness.labels(label).set(self.lateness_s)

    def _set(self, state: WorkerState) -> None:
        if state is self.state:
            return
        self.state = state
        self._metrics.worker_up.labels(str(self.index)).set(state is WorkerState.READY)
        say(log, "worker state", worker=self.index, state=state)
        self._changed()
