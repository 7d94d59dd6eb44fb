"""Every figure the gateway exports, named once. No label has values that a stranger can choose."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from server.media.pool import DecoderPool

LATENCY_S = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.45, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0)
LAG_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
KNOWN_CLOSES = frozenset(
    {1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4000, 4001}
)


class Tally:
    """A counter of the hot path: a number of one thread, without the library's lock."""

    __slots__ = ("_help", "_name", "total")

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name, self._help = name, documentation
        self.total = 0.0
        registry.register(self)

    def add(self, amount: float) -> None:
        self.total += amount

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._help, self.total)


class Metrics:
    """One registry with all figures; every gateway object has its own, so tests do not meet each other."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        tally = partial(Tally, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.places = gauge("parley_places", "sessions that can be held at once")
        self.sessions = gauge("parley_sessions", "sessions that are open")
        self.handshakes = counter("parley_handshakes", "WebSockets asked for")
        self.refusals = counter("parley_refusals", "WebSockets refused", ["reason"])
        self.closes = counter("parley_closes", "WebSockets closed", ["code"])
        self.faults = counter("parley_session_faults", "sessions ended by a fault of ours")
        self.received_events = tally("parley_received_events", "messages of clients")
        self.received_bytes = tally("parley_received_bytes", "their bytes")
        self.sent_bytes = tally("parley_sent_bytes", "bytes sent to clients")
        self.first_sound_s = histogram(
            "parley_first_sound_seconds",
            "from the end of a turn to its first sound",
            buckets=LATENCY_S,
        )
        self.replies = counter("parley_replies", "replies that ended", ["reason"])
        self.reply_seconds = tally("parley_reply_seconds", "seconds of speech sent")
        self.worker_up = gauge("parley_worker_up", "1 if ready", ["worker"])
        self.worker_starts = counter("parley_worker_starts", "starts", ["worker"])
        self.worker_deaths = counter("parley_worker_deaths", "ends not asked for", ["worker"])
        self.worker_pages_free = gauge("parley_worker_pages_free", "KV pages", ["worker"])
        self.worker_memory = gauge("parley_worker_memory_bytes", "memory", ["worker"])
        self.worker_steps = gauge("parley_worker_steps", "steps since start", ["worker"])
        self.worker_lateness = gauge(
            "parley_worker_lateness_seconds", "how long the most neglected reply is due", ["worker"]
        )
        self.loop_lag_s = histogram(
            "parley_loop_lag_seconds", "delay of a 20 ms timer", buckets=LAG_S
        )
        self.speech_backlog = gauge(
            "parley_speech_backlog_seconds", "sound not judged yet, most of any session"
        )
        self.decoders_idle = gauge("parley_decoders_idle", "decoder processes that wait for work")
        self.decoders_busy = gauge("parley_decoders_busy", "decoder processes at work")
        self.decoder_kills = gauge("parley_decoder_kills", "decoder processes that died or hung")
        self.decoder_faults = gauge("parley_decoder_faults", "media that could not be decoded")
        self.decoder_drops = gauge("parley_decoder_drops", "media that nobody had time for")
        self.tasks = gauge("parley_tasks", "tasks of the event loop")
        self.tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.log_drops = gauge("parley_log_lines_dropped", "log lines lost")

    def count_close(self, code: int) -> None:
        self.closes.labels(str(code) if code in KNOWN_CLOSES else "other").inc()

    def show_decoders(self, pool: DecoderPool) -> None:
        counted = pool.counters
        self.decoders_idle.set(pool.num_idle)
        self.decoders_busy.set(pool.num_running)
        self.decoder_kills.set(counted.num_kills)
        self.decoder_faults.set(counted.num_faults)
        self.decoder_drops.set(counted.num_dropped)

    def render(self) -> bytes:
        return generate_latest(self.registry)
