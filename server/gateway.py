"""Gateway: everything that lives once per process, and the tasks that look after it."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from server.admission import Admission, memory_part
from server.auth import Doorkeeper, Keyring, OriginRule, SecretMint
from server.config import ConfigFault
from server.connection import KEY_WITHDRAWN, SHUTTING_DOWN, Services, now_ms
from server.hearing import Hearing
from server.limits import Limits
from server.logs import say
from server.media.pool import running_pool
from server.metrics import Metrics
from server.settings import Voices
from server.supervisor import Supervisor, WorkerWillNotStart
from server.worker_client import WorkerClient
from streaming.errors import LinkError, ParleyError
from streaming.media import INPUT_SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from server.config import ServerConfig
    from server.connection import Connection
    from server.media.jobs import Decoded
    from server.media.pool import DecoderPool
    from streaming.silero import SpeechModel

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
NO_VOICE = "Chelsie"
KEYS_EVERY_SWEEPS = 15
LAG_PROBE_S = 0.02
GOODBYE_WAVE_S = 5.0
DRAIN_POLL_S = 0.05
CONTAINER_MEMORY = ("memory.max", "memory.current", "memory.stat")


class Gateway:
    """Owns the workers' ends, the speech thread, the decoders, the doors' rules and the list of connections.

    Raises:
        ConfigFault: keys or origins cannot be used.
    """

    def __init__(self, config: ServerConfig, speech_model: SpeechModel) -> None:
        self.config = config
        self.metrics = Metrics()
        self.admission = Admission(config)
        keys = [key.get_secret_value() for key in config.api_keys]
        secret = config.secret_key
        self.doorkeeper = Doorkeeper(
            Keyring(keys, config.api_keys_file),
            SecretMint(secret.get_secret_value().encode() if secret else None),
            allow_query_key=config.allow_query_key,
        )
        is_exposed = config.has_keys or config.let_everyone_on_the_network_in
        self.origins = OriginRule(config.origins, must_be_local=not is_exposed)
        self.limits = Limits(
            session_ms=round(1000 * config.session_limit_s),
            silence_ms=round(1000 * config.idle_limit_s),
        )
        self.workers = [
            WorkerClient(i, self.metrics, self._workers_changed) for i in range(config.num_workers)
        ]
        self.supervisors: list[Supervisor] = []
        self.connections: dict[str, Connection] = {}
        self.failed: asyncio.Event = asyncio.Event()
        """No worker will start: `fault` says why."""
        self.fault: ParleyError | None = None
        self.changed = asyncio.Event()
        """Set at every change of a worker; whoever waits clears it."""
        self._speech_model = speech_model
        self._services: Services | None = None
        self._pool: DecoderPool | None = None

    # ---- what others ask

    @property
    def model(self) -> str:
        """Name under which the loaded model is shown."""
        return Path(self.config.model).name or self.config.model or "parley"

    def shown_model(self, asked: str | None) -> str:
        """A session shows the name that was asked for: any is answered by the loaded model."""
        return asked[:128] if asked else self.model

    @property
    def voices(self) -> Voices:
        """Of the loaded model; a name to show while none is, or if it does not speak."""
        worker = self.least_busy()
        names = worker.capacity.voices if worker is not None and worker.capacity else ()
        return Voices(names or (NO_VOICE,))

    @property
    def services(self) -> Services:
        assert self._services is not None, "the gateway is not running"
        return self._services

    @property
    def is_ready(self) -> bool:
        return not self.admission.is_draining and any(w.is_ready for w in self.workers)

    def least_busy(self) -> WorkerClient | None:
        """The ready worker with the fewest sessions."""
        ready = [w for w in self.workers if w.is_ready]
        return min(ready, key=lambda w: w.num_sessions, default=None)

    def describe(self) -> dict[str, object]:
        """What a health check shows."""
        state = (
            "draining" if self.admission.is_draining else "ready" if self.is_ready else "loading"
        )
        return {
            "status": state,
            "sessions": len(self.connections),
            "places": self.admission.num_places,
            "workers": [worker.describe() for worker in self.workers],
        }

    def render_metrics(self) -> bytes:
        """All figures, those that are looked up included."""
        if self._pool is not None:
            self.metrics.show_decoders(self._pool)
            backlog = self.services.hearing.longest_backlog_samples()
            self.metrics.speech_backlog.set(backlog / INPUT_SAMPLE_RATE)
        return self.metrics.render()

    @contextmanager
    def holding(self, connection: Connection) -> Iterator[None]:
        """List a connection while it lives."""
        self.connections[connection.session_id] = connection
        self.metrics.sessions.set(len(self.connections))
        try:
            yield
        finally:
            del self.connections[connection.session_id]
            self.metrics.sessions.set(len(self.connections))

    # ---- life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the workers and everything around them; on leaving, end them all."""
        loop = asyncio.get_running_loop()
        hearing = Hearing(self._speech_model, loop)
        folder, is_ours = _socket_folder(self.config)
        hearing.start()
        try:
            async with running_pool(self._deliver_decoded) as pool, asyncio.TaskGroup() as tasks:
                self._services = Services(self.config, self.metrics, hearing, pool)
                self._pool = pool
                for worker in self.workers:
                    self.supervisors.append(self._supervisor(worker, folder))
                watch = [
                    tasks.create_task(self._supervise(s), name=f"supervise {i}")
                    for i, s in enumerate(self.supervisors)
                ]
                care = [
                    tasks.create_task(self._sweep(), name="sweep"),
                    tasks.create_task(self._probe_lag(), name="probe lag"),
                ]
                try:
                    yield
                finally:
                    for task in care:
                        task.cancel()
                    for supervisor in self.supervisors:
                        await supervisor.stop()
                    for task in watch:
                        task.cancel()
        finally:
            hearing.stop()
            if is_ours:
                shutil.rmtree(folder, ignore_errors=True)

    async def drain(self, window_s: float) -> None:
        """Let nobody in any more, finish what is being said, for at most `window_s`, and close every socket."""
        self.admission.is_draining = True
        for supervisor in self.supervisors:
            supervisor.is_last = True
        say(log, "draining", count=len(self.connections))
        begun_s = time.monotonic()
        wave_s = min(GOODBYE_WAVE_S, window_s / 4) if len(self.connections) > 1 else 0.0
        due_s = {i: begun_s + random.uniform(0, wave_s) for i in self.connections}
        while self.connections:
            now_s = time.monotonic()
            is_late = now_s - begun_s >= window_s
            for session_id, connection in list(self.connections.items()):
                if is_late or (connection.is_idle and now_s >= due_s.get(session_id, 0)):
                    connection.close(SHUTTING_DOWN)
            if is_late and now_s - begun_s > window_s + self.config.close_limit_s + 1:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    def _supervisor(self, worker: WorkerClient, folder: Path) -> Supervisor:
        environment = {}
        if self.config.num_workers > 1 and "cuda" in self.config.worker_args:
            environment["CUDA_VISIBLE_DEVICES"] = str(worker.index)
        return Supervisor(self.config, worker, self.metrics, folder, environment)

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except (WorkerWillNotStart, LinkError) as fault:
            self.fault = fault
            self.failed.set()

    def _deliver_decoded(self, session_id: str, decoded: Decoded) -> None:
        connection = self.connections.get(session_id)
        if connection is not None:  # else it has ended
            connection.receive_decoded(decoded)

    def _workers_changed(self) -> None:
        ready = [w.capacity.num_lanes for w in self.workers if w.is_ready and w.capacity]
        limit = self.config.max_sessions
        places = sum(self.config.sessions_per_worker or (n - n // 4) for n in ready)
        self.admission.num_places = min(places, limit) if limit else places
        self.metrics.places.set(self.admission.num_places)
        self.changed.set()

    async def _sweep(self) -> None:
        """Once a second: slow readers, memory, keys taken back, figures."""
        num_sweeps = 0
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            num_sweeps += 1
            now = now_ms()
            for connection in list(self.connections.values()):
                connection.check_progress(now)
            self.admission.lateness_s = min(
                (worker.lateness_s for worker in self.workers if worker.is_ready), default=0.0
            )
            self.admission.memory_part = memory_part(await asyncio.to_thread(_read_memory))
            if num_sweeps % KEYS_EVERY_SWEEPS == 0:
                await self._refresh_keys()

    async def _refresh_keys(self) -> None:
        door = self.doorkeeper
        try:
            if not await asyncio.to_thread(door.keyring.refresh):
                return
        except ConfigFault as fault:
            log.error("keys kept as they were: %s", fault)
            return
        log.info("keys read again")
        for connection in list(self.connections.values()):
            if not door.keyring.is_open and not door.keyring.holds(connection.principal):
                connection.close(KEY_WITHDRAWN)

    async def _probe_lag(self) -> None:
        """How late a timer fires: what every socket waits behind. The loop's own clock has only milliseconds."""
        while True:
            begun_s = time.perf_counter()
            await asyncio.sleep(LAG_PROBE_S)
            lag_s = time.perf_counter() - begun_s - LAG_PROBE_S
            self.metrics.loop_lag_s.observe(max(0.0, lag_s))


def _socket_folder(config: ServerConfig) -> tuple[Path, bool]:
    """Where the workers dial, and whether it is ours to remove."""
    if config.worker_socket_dir is not None:
        return config.worker_socket_dir, False
    return Path(tempfile.mkdtemp(prefix="parley-")), True


def _read_memory() -> dict[str, str]:
    places = {name: Path("/sys/fs/cgroup") / name for name in CONTAINER_MEMORY}
    places["meminfo"] = Path("/proc/meminfo")
    read = {}
    for name, path in places.items():
        try:
            read[name] = path.read_text()
        except OSError:
            continue
    return read
