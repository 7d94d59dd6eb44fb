"""Every figure the gateway exports, named once. No label has values that a stranger can choose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_S = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.45, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0)
LAG_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
KNOWN_CLOSES = frozenset(
    {1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4000, 4001}
)


class Metrics:
    """One registry with all figures; every gateway object has its own, so tests do not meet each other."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = {"registry": self.registry}
        self.places = Gauge("parley_places", "sessions that can be held at once", **at)
        self.sessions = Gauge("parley_sessions", "sessions that are open", **at)
        self.handshakes = Counter("parley_handshakes", "WebSockets asked for", **at)
        self.refusals = Counter("parley_refusals", "WebSockets refused", ["reason"], **at)
        self.closes = Counter("parley_closes", "WebSockets closed", ["code"], **at)
        self.faults = Counter("parley_session_faults", "sessions ended by a fault of ours", **at)
        self.received_events = Counter("parley_received_events", "messages of clients", **at)
        self.received_bytes = Counter("parley_received_bytes", "their bytes", **at)
        self.sent_bytes = Counter("parley_sent_bytes", "bytes sent to clients", **at)
        self.first_sound_s = Histogram(
            "parley_first_sound_seconds",
            "from the end of a turn to its first sound",
            buckets=LATENCY_S,
            **at,
        )
        self.replies = Counter("parley_replies", "replies that ended", ["reason"], **at)
        self.reply_seconds = Counter("parley_reply_seconds", "seconds of speech sent", **at)
        self.worker_up = Gauge("parley_worker_up", "1 if ready", ["worker"], **at)
        self.worker_starts = Counter("parley_worker_starts", "starts", ["worker"], **at)
        self.worker_deaths = Counter("parley_worker_deaths", "ends not asked for", ["worker"], **at)
        self.worker_pages_free = Gauge("parley_worker_pages_free", "KV pages", ["worker"], **at)
        self.worker_memory = Gauge("parley_worker_memory_bytes", "memory", ["worker"], **at)
        self.worker_steps = Gauge("parley_worker_steps", "steps since start", ["worker"], **at)
        self.loop_lag_s = Histogram(
            "parley_loop_lag_seconds", "delay of a 20 ms timer", buckets=LAG_S, **at
        )
        self.speech_backlog = Gauge(
            "parley_speech_backlog_seconds", "sound not judged yet, most of any session", **at
        )
        self.log_drops = Gauge("parley_log_lines_dropped", "log lines lost", **at)

    def count_close(self, code: int) -> None:
        self.closes.labels(str(code) if code in KNOWN_CLOSES else "other").inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)
