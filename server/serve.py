"""Run the gateway: listen, say where, and end in order when told to.

uvicorn's own reaction to a signal is to close every socket at once; so it gets none. It is stopped when the gateway has
drained, and by nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import uvicorn

from server.app import create_app
from server.config import ConfigFault
from server.gateway import Gateway
from server.logs import say
from server.protocols import Patience, protocol_classes
from server.tls import default_folder, machine_names, network_addresses, self_signed
from streaming.silero import SpeechModel, model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from server.config import ServerConfig

log = logging.getLogger(__name__)

EXIT_WORKERS_FAILED = 70
GC_THRESHOLDS = (50_000, 20, 50)
"""Objects of a conversation live long; looking for cycles among them every 700 allocations is lag for nothing."""
EVERYWHERE = ("0.0.0.0", "::", "")


class Listener(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def serve(
    config: ServerConfig, show: Callable[[str], None], num_lines_dropped: Callable[[], int]
) -> int:
    """Serve until told to stop; return the exit status.

    Args:
        show: for the person who started us: where to go, and what is being waited for.
        num_lines_dropped: of the log, for the metrics.

    Raises:
        ConfigFault: a setting, or the address, cannot be used.
        SpeechModelError: the speech model is not installed.
    """
    gateway = Gateway(config, SpeechModel(model_path()))
    gateway.metrics.log_drops.set_function(num_lines_dropped)
    listener = bind(config.host, config.port, config.backlog)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(gateway, listener, show))


def bind(host: str, port: int, backlog: int) -> socket.socket:
    """Listen at once, so that a taken port is told before a model is loaded. Raises ConfigFault."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigFault(f"cannot listen on {host} port {port}: {reason}") from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # on platforms it does not support
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def addresses(config: ServerConfig, port: int) -> list[str]:
    """Where to point a browser: never 0.0.0.0, which is no place."""
    scheme = "https" if config.has_tls else "http"
    if config.host in EVERYWHERE:
        hosts = ["127.0.0.1", *network_addresses()]
    else:
        hosts = [f"[{config.host}]" if ":" in config.host else config.host]
    return [f"{scheme}://{host}:{port}" for host in hosts]


def _uvicorn_config(gateway: Gateway) -> uvicorn.Config:
    config = gateway.config
    http, websocket = protocol_classes(Patience(config.header_limit_s, config.close_limit_s))
    certificate, key = _certificate(config)
    return uvicorn.Config(
        create_app(gateway),
        http=http,
        ws=websocket,
        ws_per_message_deflate=False,
        ws_max_size=config.max_message_bytes,
        ws_ping_interval=config.ping_interval_s,
        ws_ping_timeout=config.ping_timeout_s,
        backlog=config.backlog,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(config.trusted_proxies),
        forwarded_allow_ips=list(config.trusted_proxies),
        timeout_graceful_shutdown=int(config.close_limit_s),
        lifespan="on",
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


def _certificate(config: ServerConfig) -> tuple[Path | None, Path | None]:
    if config.tls_self_signed:
        return self_signed(default_folder(), machine_names(), datetime.now(UTC))
    return config.tls_cert, config.tls_key


async def _serve(gateway: Gateway, sock: socket.socket, show: Callable[[str], None]) -> int:
    listener = Listener(_uvicorn_config(gateway))
    port = int(sock.getsockname()[1])
    stop = _Stop()
    stop.listen()
    serving = asyncio.create_task(listener.serve(sockets=[sock]), name="listen")
    greeting = asyncio.create_task(_greet(gateway, port, show), name="greet")
    stopped = asyncio.create_task(stop.asked.wait(), name="wait for a signal")
    failed = asyncio.create_task(gateway.failed.wait(), name="wait for failure")
    say(log, "listening", port=port, pid=os.getpid())
    try:
        await asyncio.wait((serving, stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            await _drain(gateway, stop)
        ended_by_itself = serving.done()
    finally:
        for task in (greeting, stopped, failed):
            task.cancel()
        listener.should_exit = True
        await serving
    say(log, "stopped")
    if gateway.fault is not None:
        show(f"error: {gateway.fault}")
        return EXIT_WORKERS_FAILED
    return os.EX_SOFTWARE if ended_by_itself else os.EX_OK


class _Stop:
    """Signals: the first asks to drain, the second to hurry."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take)

    def _take(self) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


async def _drain(gateway: Gateway, stop: _Stop) -> None:
    drain = asyncio.create_task(gateway.drain(gateway.config.drain_s), name="drain")
    hurry = asyncio.create_task(stop.hurry.wait(), name="wait for a second signal")
    await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
    if not drain.done():
        drain.cancel()
        await gateway.drain(0)
    hurry.cancel()


async def _greet(gateway: Gateway, port: int, show: Callable[[str], None]) -> None:
    """Say where to go once there is somebody to talk to."""
    shown = ""
    while not gateway.is_ready:
        gateway.changed.clear()
        progress = gateway.workers[0].progress
        line = "starting" if progress is None else f"{progress.stage} {progress.progress:.0%}"
        if line != shown:
            show(f"loading the model: {line}")
            shown = line
        await gateway.changed.wait()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    first, *others = addresses(gateway.config, port)
    show(f"Parley is ready: open {first}")
    for address in others:
        show(f"  from other machines: {address}")
    if others and not gateway.config.has_tls:
        show(
            "  their browsers give a microphone to https only: --tls-self-signed, or --tls-cert and --tls-key"
        )
    socket_scheme = first.replace("http", "ws", 1)
    show(f"  programs connect to {socket_scheme}/v1/realtime")
