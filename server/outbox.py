"""Outbox: server events in order until the connection can take them; what was cancelled is withdrawn from it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING

from server.events import (
    ContentPartDone,
    ItemDone,
    OutputAudioDelta,
    OutputAudioDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    OutputTranscriptDelta,
    OutputTranscriptDone,
    ResponseDone,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.events import ServerEvent

EVENT_BYTES = 512
"""What an event counts, rendered, without what was said in it."""

WITHDRAWN = (
    OutputAudioDelta,
    OutputTranscriptDelta,
    OutputTextDelta,
    OutputAudioDone,
    OutputTranscriptDone,
    OutputTextDone,
    ContentPartDone,
    ItemDone,
    OutputItemDone,
    ResponseDone,
)
"""Of a cancelled response, while they wait; what began, ends anew with what the client has really got."""


@dataclass(frozen=True, slots=True)
class _Queued:
    event: ServerEvent
    response_id: str | None
    num_bytes: int

    @classmethod
    def of(cls, event: ServerEvent, response_id: str | None) -> _Queued:
        if isinstance(event, OutputAudioDelta):
            content = len(event.pcm) * 4 // 3
        else:
            content = _content_bytes(event)
        return cls(event, response_id, EVENT_BYTES + content)


class Outbox:
    """Owned by the session. `on_taken` hears of every event of a response that leaves."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self._queue: deque[_Queued] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, event: ServerEvent, response_id: str | None = None) -> None:
        """Queue an event; with `response_id` it is withdrawn if that response is cancelled in time."""
        queued = _Queued.of(event, response_id)
        self._queue.append(queued)
        self.unsent_bytes += queued.num_bytes

    def put_before_items(self, events: list[ServerEvent], response_id: str) -> None:
        """Queue what closes the first item of a response: in front of its next item, or behind everything."""
        waiting = list(self._queue)
        place = next(
            (i for i, q in enumerate(waiting) if _adds_next_item(q, response_id)), len(waiting)
        )
        put = [_Queued.of(event, response_id) for event in events]
        self._queue = deque([*waiting[:place], *put, *waiting[place:]])
        self.unsent_bytes += sum(queued.num_bytes for queued in put)

    def take(self) -> ServerEvent | None:
        if not self._queue:
            return None
        queued = self._queue.popleft()
        self.unsent_bytes -= queued.num_bytes
        return queued.event

    def holds(self, found: Callable[[ServerEvent], bool]) -> bool:
        """An event like that waits."""
        return any(found(queued.event) for queued in self._queue)

    def withdraw(self, response_id: str) -> list[ServerEvent]:
        """Take back what a response still had to say; return it in order."""
        withdrawn = [q for q in self._queue if _is_withdrawn(q, response_id)]
        self._queue = deque(q for q in self._queue if not _is_withdrawn(q, response_id))
        self.unsent_bytes = sum(q.num_bytes for q in self._queue)
        return [q.event for q in withdrawn]


def _content_bytes(value: object) -> int:
    """What the texts and media of an event hold in memory while it waits."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(map(_content_bytes, value))
    if isinstance(value, dict):
        return sum(map(_content_bytes, value.values()))
    if is_dataclass(value):
        return sum(_content_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def _adds_next_item(queued: _Queued, response_id: str) -> bool:
    event = queued.event
    is_item = isinstance(event, OutputItemAdded) and event.output_index > 0
    return is_item and queued.response_id == response_id


def _is_withdrawn(queued: _Queued, response_id: str) -> bool:
    return queued.response_id == response_id and isinstance(queued.event, WITHDRAWN)
