"""The worker process: load, say hello, then read, step, write until told to stop.

    reader thread ─(▶ picture thread)─▶ inbox ──▶ step loop ──▶ link's writer thread
    heartbeat thread ──────────────────────▶ WorkerStatus once a second, whatever the step loop does

The loop sleeps only when nothing can run; a packet, or the moment a paced reply may go on, wakes it.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.omni import Omni, load
from streaming.engine.config import EngineConfig, EngineConfigError
from streaming.engine.engine import Engine, EngineDead
from streaming.engine.pages import IntegrityError
from streaming.engine.pictures import Pictures, PictureThread
from streaming.errors import LinkError, WorkerLost
from streaming.media import ClipKind, ClipStart, MediaChunk
from streaming.packets import (
    PROTOCOL,
    AppendChunk,
    CancelTurn,
    CloseSession,
    Command,
    CommitTurn,
    Hello,
    Loading,
    OpenClip,
    OpenSession,
    Ready,
    Reply,
    ReplyOptions,
    WorkerStatus,
    decode_command,
)
from streaming.transport import ThreadedLink, dial

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.checkpoint import LoadProgress

log = logging.getLogger(__name__)

BUILD = "0.1.0"
EXIT_DEAD = 71
"""The device or the bookkeeping cannot be trusted any more; start a new worker."""
EXIT_CONFIG = 78
HEARTBEAT_S = 1.0
LOADING_EVERY_S = 1.0
DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Worker:
    """The step loop around an engine, and what the other threads may touch: the inbox and a few counters."""

    def __init__(
        self, send: Callable[[Reply], None], clock: Callable[[], float], max_image_pixels: int
    ) -> None:
        """`clock` in milliseconds, monotonic."""
        self._send = send
        self._now_ms = clock
        self._inbox: deque[Command | Pictures] = deque()
        self._pictures = PictureThread(self._put, max_image_pixels)
        self._changed = threading.Condition()
        self._cancelled: dict[str, int] = {}
        """By session, the newest turn that was cancelled: nothing of it leaves, even from the step now running."""
        self._is_draining = False
        self._has_ended = False
        self._engine: Engine | None = None
        self._last_step_ms = clock()
        self._stopped = threading.Event()

    def receive(self, command: Command) -> None:
        """Take a packet, in the reader thread. A cancel counts from here, not from the next step."""
        with self._changed:
            if isinstance(command, CancelTurn):
                newest = self._cancelled.get(command.session_id, -1)
                self._cancelled[command.session_id] = max(newest, command.turn_id)
            elif isinstance(command, CloseSession | OpenSession):
                self._cancelled.pop(command.session_id, None)
        self._pictures.receive(command)

    def _put(self, command: Command | Pictures) -> None:
        with self._changed:
            self._inbox.append(command)
            self._changed.notify()

    def wake(self) -> None:
        """There is work without a packet: sound has been made."""
        with self._changed:
            self._changed.notify()

    def link_ended(self, fault: LinkError | None) -> None:
        """The gateway is gone: there is nobody left to compute for."""
        if fault is not None:
            log.error("link ended fault=%s", fault)
        with self._changed:
            self._has_ended = True
            self._changed.notify()

    def drain(self) -> None:
        """Accept no session any more and stop when the last one is closed. Called by a signal handler: no lock."""
        if self._is_draining:
            self._has_ended = True  # asked twice: now
        self._is_draining = True

    def run(self, engine: Engine) -> None:
        """Serve until drained or hung up on. Raises EngineDead or IntegrityError."""
        self._engine = engine
        self._last_step_ms = self._now_ms()
        self._send(Ready(engine.capacity))
        heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heartbeat.start()
        self._pictures.start()
        try:
            while not self._has_ended and not (self._is_draining and not engine.conversations):
                self._turn(engine)
        finally:
            self._stopped.set()
            self._pictures.stop()
            heartbeat.join(HEARTBEAT_S)

    def _turn(self, engine: Engine) -> None:
        for command in self._take(engine):
            if self._is_draining and isinstance(command, OpenSession):
                continue  # the gateway sends none once it drains; one may have crossed our signal
            engine.submit(command, self._now_ms())
        if engine.can_step(self._now_ms()):
            for reply in engine.step(self._now_ms()):
                if not self._is_cancelled(reply):
                    self._send(reply)
            self._last_step_ms = self._now_ms()

    def _take(self, engine: Engine) -> list[Command | Pictures]:
        """What has arrived; waits while there is nothing to do."""
        with self._changed:
            if not self._inbox and not engine.can_step(self._now_ms()):
                self._changed.wait(self._sleep_s(engine))
            taken = list(self._inbox)
            self._inbox.clear()
            return taken

    def _sleep_s(self, engine: Engine) -> float:
        now_ms = self._now_ms()
        wake = engine.wake_ms(now_ms)
        longest = 0.2  # a signal handler cannot notify
        return longest if wake is None else min(longest, max(0.0005, (wake - now_ms) / 1000))

    def _is_cancelled(self, reply: Reply) -> bool:
        """A delta of a turn that has been cancelled; how the turn ended is still told."""
        kind = type(reply).__name__
        if kind not in ("TextDelta", "AudioDelta"):
            return False
        turn_id = getattr(reply, "turn_id", -1)
        return bool(turn_id <= self._cancelled.get(getattr(reply, "session_id", ""), -1))

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            engine = self._engine
            assert engine is not None
            now_ms = self._now_ms()
            pools = list(engine.scheduler.pools.values())
            self._send(
                WorkerStatus(
                    step_count=engine.num_steps,
                    last_step_age_ms=int(now_ms - self._last_step_ms),
                    has_work=bool(self._inbox) or engine.is_busy,
                    num_sessions=len(engine.conversations),
                    num_pages_free=min(pool.num_free for pool in pools),
                    memory_bytes=memory_bytes(engine.omni.device),
                    lateness_ms=int(engine.lateness_ms(now_ms)),
                )
            )


def memory_bytes(device: torch.device) -> int:
    """What the process holds of the memory that matters: the device's, or its own peak."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_model(config: EngineConfig, report: Callable[[str, float], None]) -> Omni:
    """Load the checkpoint, reporting at most once a second. Raises CheckpointError or ConfigError."""
    last_s = 0.0

    def progress(loaded: LoadProgress) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= LOADING_EVERY_S:
            last_s = time.monotonic()
            report("weights", loaded.done_bytes / max(1, loaded.total_bytes))

    dtype = DTYPES[config.dtype]
    return load(
        config.model,
        device=config.device,
        dtype=dtype,
        weights=config.weights,
        solver=config.solver,
        progress=progress,
    )


def warm_up(engine: Engine, now_ms: Callable[[], float]) -> None:
    """One short conversation through every stage, so that the first user pays for no first call."""
    name, pcm = "warm-up", bytes(2 * 16_000)
    options = ReplyOptions(speech=engine.omni.config.has_speech, max_text_tokens=4, max_codes=64)
    commands: tuple[Command, ...] = (
        OpenSession(name),
        OpenClip(name, 0, ClipStart(ClipKind.SOUND, 0)),
        AppendChunk(name, 0, MediaChunk(0, 0, pcm, is_last=True)),
        CommitTurn(name, 0, options),
    )
    for command in commands:
        engine.submit(command, now_ms())
    while engine.has_work(now_ms()):
        engine.step(now_ms())
    engine.submit(CloseSession(name), now_ms())
    engine.step(now_ms())


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m streaming.engine SOCKET`; returns the exit status."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        names = [f.name for f in fields(EngineConfig)]
        config = EngineConfig(**{n: getattr(args, n) for n in names if hasattr(args, n)})
        return serve(args.socket, config)
    except (CheckpointError, ConfigError, EngineConfigError, ValueError) as fault:
        log.error("cannot start: %s", fault)
        return EXIT_CONFIG
    except WorkerLost as fault:
        log.error("no gateway: %s", fault)
        return EXIT_CONFIG


def serve(socket_path: Path, config: EngineConfig) -> int:
    """Dial the gateway, load, serve. Returns the exit status."""
    torch.set_num_threads(config.threads)
    outlet: list[ThreadedLink[Command]] = []
    worker = Worker(
        lambda reply: outlet[0].send(reply),
        lambda: time.monotonic() * 1000,
        config.max_image_pixels,
    )
    link = ThreadedLink(dial(socket_path), decode_command, worker.receive, worker.link_ended)
    outlet.append(link)
    link.start()
    link.send(Hello(PROTOCOL, BUILD, config.model))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.drain())
    try:
        omni = load_model(config, lambda stage, part: link.send(Loading(stage, part)))
        engine = Engine(omni, config, wake=worker.wake)
        for part in engine.runner.warm_up():
            link.send(Loading("graphs", part))
        link.send(Loading("warm-up", 0.0))
        warm_up(engine, lambda: time.monotonic() * 1000)
        worker.run(engine)
    except (EngineDead, IntegrityError):
        log.exception("engine dead")
        return EXIT_DEAD
    finally:
        link.close()
    return os.EX_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m streaming.engine", description=main.__doc__)
    parser.add_argument("socket", type=Path, help="Unix socket on which the gateway listens")
    for setting in fields(EngineConfig):
        name = "--" + setting.name.replace("_", "-")
        if isinstance(setting.default, bool):
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
            continue
        kind = str if isinstance(setting.default, str) else int
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS)
    return parser
