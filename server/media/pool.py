"""Who decodes what: child processes, one for each stream in use, and sessions that wait for one.

    submit ──▶ waiting ── a process is free ──▶ running ── done ──▶ process idle again, or replaced
                  └── too long, too much ──▶ dropped

A stream keeps its process until it ends, since its decoder cannot move; so what kills the process was sent by that
stream, and that stream alone pays. Some processes are kept idle and ready: starting one takes half a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.media.child import DecoderChild, DecoderLost
from server.media.jobs import CloseStream, Decoded, FaultCode, MediaFault, Stills, StreamData

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.media.jobs import MediaJob

log = logging.getLogger(__name__)

Deliver = Callable[[str, Decoded], None]
"""Takes a session's id and an answer to one of its jobs. Must not raise."""


REFUSALS = frozenset(
    {FaultCode.INVALID_IMAGE, FaultCode.IMAGE_TOO_LARGE, FaultCode.UNSUPPORTED_MEDIA_TYPE}
)
"""Found by a reader that said no in good order. Replacing the process for each would let anyone with a few bad bytes
keep a processor busy."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    num_idle: int = 2
    """Processes kept ready, as long as `max_processes` allows."""
    max_processes: int = 8
    """Streams that can be decoded at the same time."""
    max_per_session: int = 2
    """Streams of one session that are decoded at the same time, and so many of its stills beside them."""
    max_jobs: int = 1000
    """After so many a process is replaced."""
    job_s: float = 5.0
    """Wall time for one job; then the process is killed."""
    wait_s: float = 10.0
    """How long a stream or still waits for a process; then it is dropped."""
    quiet_s: float = 10.0
    """A stream that has sent nothing for so long gives its process up to one that waits."""
    session_bytes: int = 32 * 1024 * 1024
    """Waiting for one session's turn; what exceeds it is dropped."""
    total_bytes: int = 256 * 1024 * 1024


@dataclass(slots=True)
class PoolCounters:
    """Totals since the start, for metrics."""

    num_jobs: int = 0
    num_faults: int = 0
    num_kills: int = 0
    """Processes that ended by themselves or ran into the limit of time."""
    num_dropped: int = 0
    num_started: int = 0


@dataclass(slots=True, eq=False)
class _Work:
    """A still, or a stream from its first piece to its end."""

    session_id: str
    key: str
    is_stream: bool
    jobs: deque[MediaJob] = field(default_factory=deque)
    num_bytes: int = 0
    is_closed: bool = False
    """Nothing more is delivered."""
    quiet_since_s: float | None = None
    """Since when its process has had nothing to do; None while it has."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    def add(self, job: Stills | StreamData) -> None:
        self.jobs.append(job)
        self.num_bytes += _num_bytes(job)
        self.changed.set()

    def close(self) -> None:
        self.is_closed = True
        self.jobs.clear()
        self.num_bytes = 0
        self.changed.set()
        if self.timer:
            self.timer.cancel()

    async def next_job(self, now_s: Callable[[], float]) -> MediaJob | None:
        """The next job, once there is one; None when the work is closed."""
        while not self.jobs and not self.is_closed:
            self.quiet_since_s = now_s()
            self.changed.clear()
            await self.changed.wait()
        self.quiet_since_s = None
        if self.is_closed:
            return None
        job = self.jobs.popleft()
        self.num_bytes -= _num_bytes(job)
        return job


class DecoderPool:
    """The processes and who has them. Lives in one event loop; `running_pool` makes one."""

    def __init__(self, deliver: Deliver, limits: PoolLimits, tasks: asyncio.TaskGroup) -> None:
        self.counters = PoolCounters()
        self._deliver = deliver
        self._limits = limits
        self._tasks = tasks
        self._active: set[asyncio.Task[None]] = set()
        self._now_s = asyncio.get_running_loop().time
        self._idle: list[DecoderChild] = []
        self._retired: list[DecoderChild] = []
        """Killed and perhaps not gone."""
        self._num_starting = 0
        self._waiting: list[_Work] = []
        self._running: dict[_Work, DecoderChild | None] = {}
        self._streams: dict[tuple[str, str], _Work] = {}

    # ---- from the sessions

    def submit(self, session_id: str, job: MediaJob) -> None:
        """Take a job; every answer comes through `deliver`. A piece of a stream that has ended is ignored."""
        if isinstance(job, CloseStream) or (isinstance(job, StreamData) and job.is_new):
            self._close(self._streams.get((session_id, job.key)))
        if isinstance(job, CloseStream):
            return
        work = self._work_of(session_id, job)
        if work is None:
            return
        self.counters.num_jobs += 1
        if self._is_too_much(session_id, _num_bytes(job)):
            self._drop(work, "too much is waiting to be decoded; send less")
            return
        work.add(job)
        self._start_waiting()

    def close_session(self, session_id: str) -> None:
        """The session is over: nothing more is delivered to it."""
        for work in self._all_works():
            if work.session_id == session_id:
                self._close(work)

    # ---- for metrics and tests

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def pids(self) -> list[int]:
        """Of all processes that have started."""
        running = [child for child in self._running.values() if child]
        return [child.pid for child in (*self._idle, *running)]

    # ---- who is next

    def _work_of(self, session_id: str, job: Stills | StreamData) -> _Work | None:
        if isinstance(job, StreamData) and not job.is_new:
            return self._streams.get((session_id, job.key))
        work = _Work(session_id, job.key, isinstance(job, StreamData))
        if work.is_stream:
            self._streams[session_id, job.key] = work
        self._waiting.append(work)
        loop = asyncio.get_running_loop()
        work.timer = loop.call_later(
            self._limits.wait_s, self._drop, work, "all decoders are busy; try again later"
        )
        return work

    def _is_too_much(self, session_id: str, num_bytes: int) -> bool:
        works = self._all_works()
        mine = sum(work.num_bytes for work in works if work.session_id == session_id)
        total = sum(work.num_bytes for work in works)
        return (
            mine + num_bytes > self._limits.session_bytes
            or total + num_bytes > self._limits.total_bytes
        )

    def _all_works(self) -> list[_Work]:
        return [*self._waiting, *self._running]

    def _start_waiting(self) -> None:
        """Give processes to those who wait, in order of arrival, but never more than its share to one session."""
        for work in list(self._waiting):
            if self._has_its_share(work):
                continue
            if len(self._running) >= self._limits.max_processes:
                self._end_quiet_stream()
                return
            self._waiting.remove(work)
            if work.timer:
                work.timer.cancel()
            self._running[work] = None
            self._begin(self._serve(work), f"decode {work.session_id}")

    def _has_its_share(self, work: _Work) -> bool:
        """Whether the session has as many processes as it may for this kind of work."""
        num_alike = sum(
            other.session_id == work.session_id and other.is_stream == work.is_stream
            for other in self._running
        )
        return num_alike >= self._limits.max_per_session

    def _end_quiet_stream(self) -> None:
        """Make the stream that has been quiet longest give its process up, if that is long."""
        quiet = [work for work in self._running if work.quiet_since_s is not None]
        work = min(quiet, key=lambda work: work.quiet_since_s or 0.0, default=None)
        if work and self._now_s() - (work.quiet_since_s or 0.0) >= self._limits.quiet_s:
            self._drop(work, "the stream was quiet while others waited; begin a new one")

    def _begin(self, act: Coroutine[None, None, None], name: str) -> None:
        task = self._tasks.create_task(act, name=name)
        self._active.add(task)
        task.add_done_callback(self._active.discard)

    # ---- ends

    def _close(self, work: _Work | None) -> None:
        if work is None:
            return
        work.close()
        if self._streams.get((work.session_id, work.key)) is work:
            del self._streams[work.session_id, work.key]
        if work in self._waiting:
            self._waiting.remove(work)

    def _drop(self, work: _Work, message: str) -> None:
        self.counters.num_dropped += 1
        self._fail(work, MediaFault(FaultCode.DROPPED, message))

    def _fail(self, work: _Work, fault: MediaFault) -> None:
        if work.is_closed:
            return
        self._close(work)
        self._deliver(work.session_id, Decoded(work.key, is_job_done=True, fault=fault))

    # ---- one process at work

    async def _serve(self, work: _Work) -> None:
        child, is_fit = None, False
        try:
            child = await self._take_child()
            self._running[work] = child
            if child is None:
                self._fail(work, _lost(work))
                return
            if work.is_stream:  # it keeps the process for long
                self.fill()
            is_fit = await self._decode(work, child)
        finally:
            if child is not None:
                self._give_back(child, is_fit)
            del self._running[work]
            self._close(work)
        self.fill()
        self._start_waiting()

    async def _decode(self, work: _Work, child: DecoderChild) -> bool:
        """Do the jobs of a work until its end. Return whether the process may be used again."""
        has_begun = False
        try:
            while (job := await work.next_job(self._now_s)) is not None:
                has_begun = True
                async with asyncio.timeout(self._limits.job_s):
                    fault = await child.run(job, lambda decoded: self._pass_on(work, decoded))
                if fault:
                    return fault.code in REFUSALS
                if not isinstance(job, StreamData) or job.is_last:
                    self._close(work)
                    return True
            if has_begun:
                async with asyncio.timeout(self._limits.job_s):
                    await child.run(CloseStream(work.key), lambda decoded: None)
            return True
        except (TimeoutError, DecoderLost) as error:
            self.counters.num_kills += 1
            log.warning("decoder lost session_id=%s pid=%d %r", work.session_id, child.pid, error)
            self._fail(work, _lost(work))
            return False

    def _pass_on(self, work: _Work, decoded: Decoded) -> None:
        if work.is_closed:
            return
        if decoded.fault:
            self.counters.num_faults += 1
            self._close(work)
        self._deliver(work.session_id, decoded)

    # ---- processes

    def fill(self) -> None:
        """Start processes until enough are idle."""
        while (
            len(self._idle) + self._num_starting < self._limits.num_idle
            and len(self._idle) + self._num_starting + len(self._running)
            < self._limits.max_processes
        ):
            self._num_starting += 1
            self._begin(self._start_idle(), "start decoder")

    async def _start_idle(self) -> None:
        try:
            child = await self._start_child()
        finally:
            self._num_starting -= 1
        if child is not None:
            self._give_back(child, is_fit=True)

    async def _take_child(self) -> DecoderChild | None:
        while self._idle:
            child = self._idle.pop()
            if child.is_alive:
                return child
            self._retire(child)
        return await self._start_child()

    async def _start_child(self) -> DecoderChild | None:
        try:
            child = await DecoderChild.start()
        except (DecoderLost, OSError) as error:
            log.error("no decoder process %r", error)
            return None
        self.counters.num_started += 1
        return child

    def _give_back(self, child: DecoderChild, is_fit: bool) -> None:
        has_more = child.num_jobs < self._limits.max_jobs
        if is_fit and has_more and len(self._idle) < self._limits.num_idle:
            self._idle.append(child)
        else:
            self._retire(child)

    def _retire(self, child: DecoderChild) -> None:
        child.kill()
        self._retired = [other for other in (*self._retired, child) if other.is_alive]

    async def end(self) -> None:
        """Kill all processes; nothing more is delivered."""
        for work in self._all_works():
            work.close()
        self._waiting.clear()
        for task in self._active:
            task.cancel()
        if self._active:
            await asyncio.wait(self._active)  # each ends within the limit of its process's end
        for child in self._idle:
            self._retire(child)
        self._idle.clear()
        for child in self._retired:
            await child.ended()


@asynccontextmanager
async def running_pool(
    deliver: Deliver, limits: PoolLimits | None = None
) -> AsyncIterator[DecoderPool]:
    """Yield a pool whose processes are starting; end them all afterwards. Enter it in the main thread's loop."""
    async with asyncio.TaskGroup() as tasks:
        pool = DecoderPool(deliver, limits or PoolLimits(), tasks)
        pool.fill()
        try:
            yield pool
        finally:
            await pool.end()


def _num_bytes(job: MediaJob) -> int:
    match job:
        case Stills():
            return len(job.image)
        case StreamData():
            return len(job.data)
        case CloseStream():
            return 0


def _lost(work: _Work) -> MediaFault:
    code = FaultCode.MEDIA_DECODE_ERROR if work.is_stream else FaultCode.INVALID_IMAGE
    return MediaFault(code, "decoding failed; the data is broken or takes too long")
