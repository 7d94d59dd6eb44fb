"""Journal: the items of a conversation in order, with what the model is to know of each.

It is the truth about a conversation: what a worker knows is rebuilt from it at any time (`server/context.py`). What a
worker said itself need not be told to that worker again: items remember the reply they came from.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from server.context import Awaited, Passage, Picture, Words, reply_key
from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    OutputAudio,
    SystemMessage,
    UserMessage,
)
from server.tools import write_call, write_output
from streaming.media import INPUT_SAMPLES_PER_ROW, ClipStart, FramePair, MediaChunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.context import Key, Piece
    from server.items import Item

MAX_ITEMS = 2_000
MAX_MEDIA_BYTES = 48 * 1024 * 1024
MAX_REMOVED_IDS = 2_000
MAX_ECHOED_BYTES = 1536 * 1024
"""Longer sound fits into no message, however it is written."""
# Guesses, and not low, of what the model makes of a piece.
TOKENS_PER_PICTURE = 400
TOKENS_PER_ITEM = 8
BYTES_PER_TOKEN = 3


@dataclass(slots=True)
class Origin:
    """A reply of a worker, and the items that show it."""

    session_id: str
    turn_id: int
    num_items: int = 0
    is_whole: bool = True
    """The items are and say what the worker said; else they must be told like any others."""

    @property
    def where(self) -> tuple[str, int]:
        return self.session_id, self.turn_id


@dataclass(slots=True)
class Record:
    """An item and its standing in the conversation."""

    item: Item
    serial: int
    """Never reused, as the id of a deleted item may be."""
    pieces: list[Piece] = field(default_factory=list)
    """Of what users and clients said; what assistants said is in the item."""
    origin: Origin | None = None
    revision: int = 0
    num_media_bytes: int = 0
    num_samples: int = 0
    """Sound of an assistant's item that was sent, at the model's rate."""
    kept_samples: int | None = None
    """What a truncation left of it; None: all."""
    acked_samples: int | None = None
    """Played, as the client reports while it plays."""

    @property
    def key(self) -> Key:
        return ("item", self.serial, self.revision)

    @property
    def sound(self) -> bytes | None:
        """What the user said, if it is one clip, still kept and short enough to be sent back."""
        if sum(1 for piece in self.pieces if isinstance(piece, ClipStart)) != 1:
            return None
        chunks = [piece.pcm for piece in self.pieces if isinstance(piece, MediaChunk)]
        return b"".join(chunks) if sum(map(len, chunks)) <= MAX_ECHOED_BYTES else None

    def said(self) -> list[Piece]:
        """Return what the model is to know."""
        match self.item:
            case AssistantMessage():
                text = assistant_text(self.item)
                return [Words("assistant", text)] if text else []
            case FunctionCall():
                return [Words("assistant", write_call(self.item.name, self.item.arguments))]
            case FunctionCallOutput():
                return [Words("user", write_output(self.item.output))]
            case SystemMessage():
                return [Words("system", part.text) for part in self.item.content if part.text]
        return self.pieces


class Journal:
    """One conversation; owned by the session."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.max_pictures = 64
        self._by_id: dict[str, Record] = {}
        self._removed_ids: deque[str] = deque(maxlen=MAX_REMOVED_IDS)
        self._num_media_bytes = 0
        self._context_from = 0
        """Serial: what is older has left the model's context."""
        self._num_made = 0

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._by_id

    def next_serial(self) -> int:
        """Return a number for an item to be."""
        self._num_made += 1
        return self._num_made

    def get(self, item_id: str) -> Record | None:
        return self._by_id.get(item_id)

    def was_removed(self, item_id: str) -> bool:
        return item_id in self._removed_ids

    @property
    def tail_id(self) -> str | None:
        return self.records[-1].item.id if self.records else None

    def add(self, record: Record, after_id: str | None) -> str | None:
        """Put an item behind another, or first with None; return the id of its predecessor.

        An `after_id` that is gone means the end.
        """
        at = 0 if after_id is None else self._place_behind(after_id)
        record.num_media_bytes = sum(_num_bytes(piece) for piece in record.pieces)
        self._num_media_bytes += record.num_media_bytes
        self.records.insert(at, record)
        self._by_id[record.item.id] = record
        if record.origin is not None:
            record.origin.num_items += 1
        self._bound()
        return self.previous_id(record)

    def previous_id(self, record: Record) -> str | None:
        at = next((i for i, r in enumerate(self.records) if r is record), 0)
        return self.records[at - 1].item.id if at else None

    def made_by(self, session_id: str, turn_id: int) -> list[Record]:
        """Return the items of a reply."""
        where = session_id, turn_id
        return [r for r in self.records if r.origin is not None and r.origin.where == where]

    def remove(self, item_id: str) -> Record:
        record = self._by_id.pop(item_id)
        self.records = [r for r in self.records if r is not record]
        self._removed_ids.append(item_id)
        self._num_media_bytes -= record.num_media_bytes
        if record.origin is not None:
            record.origin.is_whole = False
        return record

    def revise(self, record: Record, text: str, *, is_known: bool) -> None:
        """Change what an assistant's item says; `is_known`: the worker that said it knows."""
        assert isinstance(record.item, AssistantMessage)
        for part in record.item.content:
            if isinstance(part, OutputAudio):
                part.transcript = text
            else:
                part.text = text
        if is_known:
            return
        record.revision += 1
        if record.origin is not None:
            record.origin.is_whole = False

    def passages(self, session_id: str | None) -> list[Passage]:
        """Return what a worker session is to know; `session_id` may have said some of it itself."""
        old_pictures = self._old_pictures()
        shown = [r for r in self._in_context() if r.serial not in old_pictures]
        passages = []
        for origin, run in groupby(shown, lambda r: _said_key(r, session_id)):
            records = list(run)
            if origin is not None and len(records) == _num_items(records[0]):
                passages.append(Passage(origin, ()))
            else:
                passages += [Passage(r.key, r.said()) for r in records]
        return passages

    def shrink(self, max_tokens: int) -> bool:
        """Let the oldest turns leave the context until the rest is surely short enough; False if one is left."""
        records = list(self._in_context())
        starts = [i for i, r in enumerate(records) if _begins_turn(records, i)]
        if len(starts) < 2:
            return False
        at = next((i for i in starts[1:] if _num_tokens(records[i:]) <= max_tokens), starts[-1])
        self._context_from = records[at].serial
        return True

    def _in_context(self) -> Iterator[Record]:
        """Items in the model's context: from the first that is young enough on."""
        young = next(
            (i for i, r in enumerate(self.records) if r.serial >= self._context_from),
            len(self.records),
        )
        return iter(self.records[young:])

    def _old_pictures(self) -> frozenset[int]:
        """Serials of items of pictures alone that a newer picture of the same turn replaces."""
        last = max(
            (i for i, r in enumerate(self.records) if isinstance(r.item, AssistantMessage)),
            default=-1,
        )
        serials = [r.serial for r in self.records[last + 1 :] if _is_picture(r)]
        return frozenset(serials[: max(0, len(serials) - self.max_pictures)])

    def _place_behind(self, item_id: str) -> int:
        places = (i + 1 for i, r in enumerate(self.records) if r.item.id == item_id)
        return next(places, len(self.records))

    def _bound(self) -> None:
        while len(self.records) > MAX_ITEMS:
            self.remove(self.records[0].item.id)
        for record in self.records[:-1]:
            if self._num_media_bytes <= MAX_MEDIA_BYTES:
                return
            self._num_media_bytes -= record.num_media_bytes
            _forget_media(record)


def _said_key(record: Record, session_id: str | None) -> Key | None:
    """The key of the reply that a record stands for in a worker session, if it is whole and was said there."""
    origin = record.origin
    if origin is None or not origin.is_whole or origin.session_id != session_id:
        return None
    return reply_key(origin.session_id, origin.turn_id)


def assistant_text(item: AssistantMessage) -> str:
    """Return what an assistant's item says."""
    texts = (p.transcript if isinstance(p, OutputAudio) else p.text for p in item.content)
    return "".join(texts)


def _num_items(record: Record) -> int:
    return record.origin.num_items if record.origin is not None else 0


def _is_picture(record: Record) -> bool:
    return bool(record.pieces) and all(isinstance(p, Picture) for p in record.pieces)


def _begins_turn(records: list[Record], index: int) -> bool:
    """A user's item behind an assistant's, or the first of all: the context may begin there."""
    if index == 0:
        return True
    behind = records[index - 1].item
    is_said = isinstance(records[index].item, UserMessage | SystemMessage)
    return is_said and not isinstance(behind, UserMessage | SystemMessage)


def _num_tokens(records: list[Record]) -> int:
    """A guess, not low."""
    return sum(TOKENS_PER_ITEM + sum(_piece_tokens(p) for p in r.said()) for r in records)


def _piece_tokens(piece: Piece) -> int:
    if isinstance(piece, Words):
        return len(piece.text.encode()) // BYTES_PER_TOKEN + 1
    if isinstance(piece, MediaChunk):
        return piece.num_samples // INPUT_SAMPLES_PER_ROW + 1
    return 2 if isinstance(piece, ClipStart) else TOKENS_PER_PICTURE


def _num_bytes(piece: Piece) -> int:
    match piece:
        case Picture():
            return len(piece.image)
        case Awaited():
            return piece.num_bytes
        case MediaChunk():
            return len(piece.pcm)
        case FramePair():
            return sum(len(frame.jpeg) for frame in piece.frames)
    return 0


def _forget_media(record: Record) -> None:
    """Keep the words; of sound, its transcript. The worker that heard it still knows, so the key stays."""
    words: list[Piece] = [p for p in record.pieces if isinstance(p, Words)]
    if isinstance(record.item, UserMessage):
        heard = [p.transcript for p in record.item.content if isinstance(p, InputAudio)]
        words += [Words("user", transcript) for transcript in heard if transcript]
    record.pieces, record.num_media_bytes = words, 0
