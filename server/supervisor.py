"""Starting worker processes, watching that they make progress, restarting them with growing delays, stopping them.

    Supervisor ──starts──▶ child.py ══becomes══▶ worker ──dials──▶ our socket ──▶ WorkerClient.serve

Health is progress: a worker that answers but completes no step is as dead as one that has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from server.logs import say
from streaming.errors import LinkError, ParleyError, WorkerLost
from streaming.packets import Hello, Loading, Ready, decode_reply, require_protocol
from streaming.transport import AsyncLink, serve_links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from server.config import ServerConfig
    from server.metrics import Metrics
    from server.worker_client import WorkerClient
    from streaming.packets import Reply

log = logging.getLogger(__name__)

STOP_LIMIT_S = 5.0
WATCH_EVERY_S = 0.5
HEALTHY_S = 60.0
"""A worker that lived so long starts the delays anew."""
EXIT_REFUSED = frozenset({2, 78})
"""A worker's exit status for settings that no restart will mend: wrong flags, no such checkpoint."""
CHILD = Path(__file__).with_name("child.py")
WORKER = (sys.executable, "-m", "streaming.engine")


class WorkerWillNotStart(ParleyError):
    """Restarting is over; whoever supervises us must see it."""


async def start_worker(
    command: Sequence[str], path: Path, arguments: Sequence[str], environment: dict[str, str]
) -> asyncio.subprocess.Process:
    """Start a worker that dies with us. Call from the main thread: the death signal follows the thread."""
    stacks = {"PYTHONFAULTHANDLER": "1"}  # SIGABRT then writes every thread's stack
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", CHILD, str(os.getpid()), *command, path, *arguments,
        env=os.environ | stacks | environment, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


class Supervisor:
    """Keeps one worker running.

    Args:
        folder: private, for the socket.
        environment: added to ours, `CUDA_VISIBLE_DEVICES` for example.
    """

    def __init__(
        self,
        config: ServerConfig,
        client: WorkerClient,
        metrics: Metrics,
        folder: Path,
        environment: dict[str, str],
    ) -> None:
        self._config = config
        self._client = client
        self._path = folder / f"worker-{client.index}.sock"
        self._environment = environment
        self._starts = metrics.worker_starts.labels(str(client.index))
        self._deaths = metrics.worker_deaths.labels(str(client.index))
        self._failed_starts: deque[float] = deque(maxlen=config.max_failed_starts)
        self.is_last = False
        """A worker that ends now is not replaced: at a terminal it hears the same Ctrl-C as we do."""
        self._is_stopping = False
        self._child: asyncio.subprocess.Process | None = None
        self._link_ended = asyncio.Event()
        self._link: AsyncLink[Reply] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Start, watch and restart until stopped.

        Raises:
            WorkerWillNotStart: it refuses its settings, or has failed to start too often.
            LinkError: the socket's path cannot be used.
        """
        server = await serve_links(self._path, decode_reply, self._accept)
        try:
            num_restarts = 0
            while not (self._is_stopping or self.is_last):
                await asyncio.sleep(self._delay_s(num_restarts))
                if self._is_stopping or self.is_last:
                    break
                begun_s = time.monotonic()
                await self._live()
                num_restarts = 1 if time.monotonic() - begun_s > HEALTHY_S else num_restarts + 1
        finally:
            await self._end_child()
            server.close()
            with suppress(OSError):
                self._path.unlink()

    async def stop(self) -> None:
        """End the worker: ask, then insist."""
        self._is_stopping = True
        await self._end_child()

    def _delay_s(self, num_restarts: int) -> float:
        """0, 0, 1, 2, 4 …: the first start and the first restart are at once."""
        if num_restarts < 2:
            return 0.0
        return float(min(2.0 ** (num_restarts - 2), self._config.max_restart_delay_s))

    async def _live(self) -> None:
        """One worker from its start to its end."""
        config = self._config
        arguments = [*(["--model", config.model] if config.model else []), *config.worker_args]
        self._link_ended.clear()
        self._starts.inc()
        self._client.starting()
        command = config.worker_command
        self._child = await start_worker(command, self._path, arguments, self._environment)
        say(log, "worker started", worker=self._client.index, pid=self._child.pid)
        was_ready = await self._watch(self._child)
        self._client.lost()
        status = await self._end_child()
        if self._is_stopping:
            return
        self._deaths.inc()
        say(log, "worker ended", logging.ERROR, worker=self._client.index, status=status)
        if not was_ready:
            self._count_failed_start(status)

    def _count_failed_start(self, status: int) -> None:
        if status in EXIT_REFUSED:
            raise WorkerWillNotStart(
                f"the worker refuses its settings (exit status {status}); its message is above"
            )
        self._failed_starts.append(time.monotonic())
        limit, window_s = self._config.max_failed_starts, self._config.failed_start_window_s
        if (
            len(self._failed_starts) == limit
            and self._failed_starts[-1] - self._failed_starts[0] < window_s
        ):
            raise WorkerWillNotStart(
                f"the worker failed to start {limit} times in a row (last exit status {status}); "
                "its messages are above"
            )

    async def _watch(self, child: asyncio.subprocess.Process) -> bool:
        """Wait for the worker's end, or make it end if it hangs; True if it had been ready."""
        end = asyncio.ensure_future(child.wait())
        hung_up = asyncio.ensure_future(self._link_ended.wait())
        config, client = self._config, self._client
        was_ready, load_until_s = False, time.monotonic() + config.load_limit_s
        try:
            while not (end.done() or hung_up.done()):
                await asyncio.wait(
                    (end, hung_up), timeout=WATCH_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                was_ready = was_ready or client.capacity is not None
                silent_s, waiting_s = client.judge(config.tick_missing_s, config.step_stuck_s)
                is_late = not was_ready and time.monotonic() > load_until_s
                if silent_s > config.tick_lost_s or waiting_s > config.step_stuck_s or is_late:
                    say(log, "worker hangs", logging.ERROR, worker=client.index, pid=child.pid)
                    await self._abort(child)
        finally:
            end.cancel()
            hung_up.cancel()
        return was_ready

    async def _abort(self, child: asyncio.subprocess.Process) -> None:
        """Ask for stacks, then kill. The sessions need not wait for either."""
        self._client.lost()
        for number in (signal.SIGABRT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                child.send_signal(number)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), self._config.abort_grace_s)
                return

    async def _accept(self, link: AsyncLink[Reply]) -> None:
        if self._link is not None:
            log.warning("a second worker dialled and was hung up on")
            return
        self._link = link
        try:
            await self._client.serve(link)
        except LinkError as fault:
            log.error("link given up: %s", fault)
        finally:
            self._link = None
            self._link_ended.set()

    async def _end_child(self) -> int:
        """Make sure that the worker is gone; return its exit status."""
        child = self._child
        if child is None:
            return 0
        if self._link is not None:
            self._link.close()
        if not self._is_stopping and self._link_ended.is_set():
            with suppress(TimeoutError):  # it hung up by itself: let it write what it has to say
                await asyncio.wait_for(child.wait(), STOP_LIMIT_S)
        return await stop_process(child)


async def stop_process(child: asyncio.subprocess.Process, limit_s: float = STOP_LIMIT_S) -> int:
    """Ask a process to end, then insist; return its exit status."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.returncode is not None:
            break
        with suppress(ProcessLookupError):
            child.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), limit_s)
    return await child.wait()


# ---- one worker for one purpose


@asynccontextmanager
async def running_worker(
    arguments: Sequence[str], on_loading: Callable[[Loading], None]
) -> AsyncIterator[tuple[AsyncLink[Reply], Ready]]:
    """Start `python -m streaming.engine` with `arguments`, wait until it is ready, stop it afterwards.

    Raises:
        WorkerLost: it ended before it was ready; its own message is on standard error.
        LinkError: it speaks another packet protocol.
    """
    dialled: asyncio.Queue[AsyncLink[Reply]] = asyncio.Queue(maxsize=1)
    finished = asyncio.Event()

    async def accept(link: AsyncLink[Reply]) -> None:
        dialled.put_nowait(link)
        await finished.wait()

    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        path = Path(folder) / "worker.sock"  # the folder is ours alone: mode 0700
        server = await serve_links(path, decode_reply, accept)
        child = await start_worker(WORKER, path, arguments, {})
        try:
            link = await _first(dialled, child)
            ready = await _until_ready(link, child, on_loading)
            yield link, ready
        finally:
            finished.set()
            server.close()
            await stop_process(child)


async def _until_ready(
    link: AsyncLink[Reply],
    child: asyncio.subprocess.Process,
    on_loading: Callable[[Loading], None],
) -> Ready:
    while True:
        match await link.receive():
            case Hello() as hello:
                require_protocol(hello)
            case Loading() as loading:
                on_loading(loading)
            case Ready() as ready:
                return ready
            case None:
                status = await child.wait()
                raise WorkerLost(f"the worker ended before it was ready (exit status {status})")


async def _first(
    dialled: asyncio.Queue[AsyncLink[Reply]], child: asyncio.subprocess.Process
) -> AsyncLink[Reply]:
    """The link, unless the child ends first."""
    link, end = asyncio.ensure_future(dialled.get()), asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait((link, end), return_when=asyncio.FIRST_COMPLETED)
        if link.done():
            return link.result()
        raise WorkerLost(f"the worker did not start (exit status {child.returncode})")
    finally:
        link.cancel()
        end.cancel()
