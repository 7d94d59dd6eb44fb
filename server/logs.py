"""Log lines for operators: one JSON object a line, of fields from a list; nothing of a conversation.

A full disk or a reader that has gone must not stop a conversation: lines wait in a bounded queue for a thread, and
what does not fit or cannot be written is counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Unpack

MAX_LINES = 10_000
TALKATIVE = ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets", "asyncio", "httpx")
FIELDS = "parley_fields"
"""Attribute of a log record that carries the fields."""


class Fields(TypedDict, total=False):
    """All that may stand in a line beside the phrase: ids, numbers and codes; never what somebody said or sent."""

    session: str
    turn: int
    worker: int
    address: str
    origin: str
    principal: str
    dialect: str
    code: str | int
    reason: str
    state: str
    status: int
    count: int
    num_bytes: int
    duration_ms: int
    port: int
    pid: int
    path: str
    model: str
    build: str
    progress: float
    delay_s: float


ALLOWED = frozenset(Fields.__annotations__)


def say(
    log: logging.Logger,
    phrase: str,
    level: int = logging.INFO,
    *,
    has_trace: bool = False,
    **fields: Unpack[Fields],
) -> None:
    """Write one line about a change of state; `has_trace` adds where the exception now handled came from."""
    if log.isEnabledFor(level):
        log.log(level, phrase, extra={FIELDS: fields}, exc_info=has_trace, stacklevel=2)


class JsonLines(logging.Formatter):
    """Records to JSON. Only the fields of the list pass, whoever set them."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        fields = getattr(record, FIELDS, {})
        line.update((k, v) for k, v in fields.items() if k in ALLOWED)
        if record.exc_info:
            line["trace"] = _whence(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def _whence(error: BaseException | None) -> str:
    """Types and places of an exception, the innermost cause first. Messages may quote what somebody said: left out."""
    if error is None:
        return ""
    inner = list(error.exceptions) if isinstance(error, BaseExceptionGroup) else []
    before = [error.__cause__ or error.__context__, *inner]
    place = "".join(traceback.format_tb(error.__traceback__))
    return "".join(map(_whence, before)) + f"{place}{type(error).__qualname__}\n"


class QueuedLines(logging.Handler):
    """A handler that never waits and never fails. Start it, and stop it to write what is left."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self.num_dropped = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most `timeout_s`."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.num_dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # full, closed
                self.num_dropped += 1


@contextmanager
def json_logs(level: str, stream: TextIO | None = None) -> Iterator[QueuedLines]:
    """Send all logging to `stream` (standard output) as JSON lines, until left."""
    if sys.stdout is None:  # started with it closed: take its descriptor, or a socket gets it
        sys.stdout = open(os.devnull, "w")  # for as long as the process lives
    handler = QueuedLines(sys.stdout if stream is None else stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    handlers_before, level_before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their lower levels write request lines with their query, headers and frames.
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler.start()
    try:
        yield handler
    finally:
        handler.stop()
        root.handlers[:] = handlers_before
        root.setLevel(level_before)
        if stream is None:
            _give_up_broken_output()


def _give_up_broken_output() -> None:
    """The interpreter flushes standard output at its end; failing there would become our exit status."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
