"""Items as clients handle them: create, retrieve, delete, and name in the input of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.context import Passage
from server.events import ItemAdded, ItemDeleted, ItemDone, ItemRetrieved
from server.items import InputAudio, ItemReference, UserMessage, snapshot
from server.journal import Record
from streaming.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.events import ItemCreate, ItemDelete, ItemRetrieve
    from server.intake import Intake
    from server.items import Item
    from server.responses import Wiring
    from server.settings import Settings

ROOT = "root"


class ItemEvents:
    """Owned by the session. Its methods raise ClientError and have then changed nothing."""

    def __init__(self, wiring: Wiring, intake: Intake) -> None:
        self._journal = wiring.journal
        self._outbox = wiring.outbox
        self._new_id = wiring.new_id
        self._intake = intake

    def create(self, event: ItemCreate, settings: Settings) -> None:
        item, journal, after_id = event.item, self._journal, event.previous_item_id
        if item.id and item.id in journal:
            raise ClientError(
                "item_create_duplicate_item_id",
                f"An item with id '{item.id}' exists already.",
                param="item.id",
            )
        if after_id not in (None, ROOT) and after_id not in journal:
            raise ClientError(
                "item_create_invalid_previous_item_id",
                f"Previous item with id '{after_id}' does not exist.",
                param="previous_item_id",
            )
        pieces = self._intake.read(item, settings)
        item.id = item.id or self._new_id("item")
        record = Record(item, journal.next_serial(), pieces)
        place = None if after_id == ROOT else after_id or journal.tail_id
        previous_id, added = journal.add(record, place), snapshot(item)
        self._outbox.put(ItemAdded(previous_id, added))
        self._outbox.put(ItemDone(previous_id, added))

    def retrieve(self, event: ItemRetrieve, settings: Settings) -> None:
        record = self._require(event.item_id, "item_retrieve_invalid_item_id")
        item = snapshot(record.item)
        if isinstance(item, UserMessage):
            for part in item.content:
                if isinstance(part, InputAudio):
                    part.pcm = record.sound
        self._outbox.put(ItemRetrieved(item, settings.input_format))

    def delete(self, event: ItemDelete) -> None:
        self._require(event.item_id, "item_delete_invalid_item_id")
        self._journal.remove(event.item_id)
        self._outbox.put(ItemDeleted(event.item_id))

    def passages(self, items: Iterable[Item | ItemReference], settings: Settings) -> list[Passage]:
        """Return what a response is to know that has an input of its own."""
        records = [
            self._record(item, settings, f"response.input.{index}")
            for index, item in enumerate(items)
        ]
        return [Passage(("input", index), r.said()) for index, r in enumerate(records)]

    def _record(self, item: Item | ItemReference, settings: Settings, where: str) -> Record:
        if not isinstance(item, ItemReference):
            return Record(item, 0, self._intake.read(item, settings, where))
        record = self._journal.get(item.id)
        if record is None:
            raise ClientError(
                "invalid_value", f"Item with id '{item.id}' does not exist.", param=f"{where}.id"
            )
        return record

    def _require(self, item_id: str, code: str) -> Record:
        record = self._journal.get(item_id)
        if record is None:
            raise ClientError(code, f"Item with id '{item_id}' does not exist.", param="item_id")
        return record
