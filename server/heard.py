"""Heard: how much of each reply the user heard, as the client says or as it was last seen playing.

What was heard is what the model should remember. The worker that made a reply cuts its memory itself and says which
words are left; for any other reply the words are estimated, and the worker is told the whole conversation anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.events import ItemTruncated
from server.items import AssistantMessage
from server.journal import assistant_text
from server.tools import CALL_BEGIN
from streaming.errors import ClientError
from streaming.media import output_ms, output_samples
from streaming.packets import ReportPlayed

if TYPE_CHECKING:
    from server.events import ItemTruncate, PlaybackAck
    from server.journal import Record
    from server.responses import Responses, Wiring
    from streaming.packets import TurnTruncated


@dataclass(frozen=True, slots=True)
class _Asked:
    """A truncation that the worker is asked for."""

    record: Record
    heard_samples: int
    of_samples: int
    """What had been left of it before."""
    until_ms: int
    answer: ItemTruncated | None
    """For the client; None if it did not ask."""


@dataclass(frozen=True, slots=True)
class _Grace:
    """An interrupted reply, of which the client may still say what was heard."""

    record: Record
    until_ms: int


class Heard:
    """Owned by the session."""

    def __init__(self, wiring: Wiring, responses: Responses) -> None:
        self._wiring = wiring
        self._responses = responses
        self._asked: _Asked | None = None
        self._grace: _Grace | None = None

    @property
    def is_waiting(self) -> bool:
        """A client waits for what the worker says."""
        return self._asked is not None

    def truncate(self, event: ItemTruncate, now_ms: int) -> None:
        """Take what the client says was heard.

        Raises:
            ClientError: there never was such an item, or no assistant said it.
        """
        record = self._wiring.journal.get(event.item_id)
        answer = ItemTruncated(event.item_id, event.content_index, event.audio_end_ms)
        if record is None and self._wiring.journal.was_removed(event.item_id):
            self._wiring.outbox.put(answer)
            return
        if record is None:
            raise ClientError(
                "item_truncate_invalid_item_id",
                f"Item with id '{event.item_id}' does not exist.",
                param="item_id",
            )
        if not isinstance(record.item, AssistantMessage):
            raise ClientError(
                "invalid_value", "Only assistant messages can be truncated.", param="item_id"
            )
        if self._grace is not None and self._grace.record is record:
            self._grace = None
        self._cut(record, output_samples(event.audio_end_ms), now_ms, answer)

    def acknowledge(self, event: PlaybackAck) -> None:
        """Take how far the client has played."""
        record = self._wiring.journal.get(event.item_id)
        if record is None or not record.num_samples:
            return
        played = min(output_samples(event.audio_end_ms), record.num_samples)
        record.acked_samples = max(played, record.acked_samples or 0)
        origin = record.origin
        if origin is not None and self._responses.context.is_running(
            origin.session_id, origin.turn_id
        ):
            report = ReportPlayed(origin.session_id, origin.turn_id, record.acked_samples)
            self._wiring.send(report)

    def note_interrupted(self, now_ms: int) -> None:
        """The conversation's reply was stopped."""
        reply = self._responses.main
        message = reply.message if reply is not None else None
        if message is not None and message.record.acked_samples is not None:
            until_ms = now_ms + self._wiring.limits.truncate_grace_ms
            self._grace = _Grace(message.record, until_ms)

    def receive_truncated(self, packet: TurnTruncated) -> None:
        """The worker has cut what it knows of a reply."""
        journal = self._wiring.journal
        record = self._said_in(packet.session_id, packet.turn_id)
        if record is not None:
            self._revise(record, packet.text, packet.heard_samples)
        elif packet.text and not journal.made_by(packet.session_id, packet.turn_id):
            self._responses.distrust(packet.session_id)  # it keeps what no item shows
        asked = self._asked
        if asked is None or (record is not None and record is not asked.record):
            return
        if packet.heard_samples <= asked.heard_samples:  # else it answers an earlier cut
            self._asked = None
            self._answer(asked)

    def tick(self, now_ms: int) -> None:
        if self._asked is not None and now_ms >= self._asked.until_ms:
            self.settle()
        if self._grace is not None and now_ms >= self._grace.until_ms:
            record, self._grace = self._grace.record, None
            self._cut(record, record.acked_samples or 0, now_ms, None)

    def settle(self) -> None:
        """Wait no longer for the worker."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._estimate(asked)
            self._answer(asked)

    def wake_ms(self) -> int | None:
        times = [waiting.until_ms for waiting in (self._asked, self._grace) if waiting is not None]
        return min(times, default=None)

    # ---- inside

    def _cut(
        self, record: Record, heard_samples: int, now_ms: int, answer: ItemTruncated | None
    ) -> None:
        if not record.num_samples:  # text, or said elsewhere: nobody knows where in it the sound is
            self._put(answer)
            return
        kept = record.num_samples if record.kept_samples is None else record.kept_samples
        heard = max(0, min(heard_samples, kept))
        if answer is not None:
            answer = ItemTruncated(answer.item_id, answer.content_index, output_ms(heard))
        if heard == kept:
            self._put(answer)
            return
        self.settle()
        record.kept_samples = heard
        asked = _Asked(record, heard, kept, now_ms + self._wiring.limits.settle_ms, answer)
        origin = record.origin
        if origin is not None and self._responses.context.truncate(
            origin.session_id, origin.turn_id, heard
        ):
            self._asked = asked
            return
        self._estimate(asked)
        self._answer(asked)

    def _answer(self, asked: _Asked) -> None:
        self._put(asked.answer)

    def _put(self, answer: ItemTruncated | None) -> None:
        if answer is not None:
            self._wiring.outbox.put(answer)

    def _said_in(self, session_id: str, turn_id: int) -> Record | None:
        made = self._wiring.journal.made_by(session_id, turn_id)
        return next((r for r in made if isinstance(r.item, AssistantMessage)), None)

    def _revise(self, record: Record, text: str, heard_samples: int) -> None:
        words = text.partition(CALL_BEGIN)[0].strip()
        origin = record.origin
        assert origin is not None
        is_there = origin.session_id == self._responses.context.session_id
        # A cut takes the calls behind the words as well, but the items of the calls stay; or the other way round.
        is_known = is_there and origin.num_items == 1 and CALL_BEGIN not in text
        self._wiring.journal.revise(record, words, is_known=is_known)
        if heard_samples < record.num_samples:
            record.kept_samples = heard_samples

    def _estimate(self, asked: _Asked) -> None:
        """Spread the words evenly over the sound."""
        assert isinstance(asked.record.item, AssistantMessage)
        text = assistant_text(asked.record.item)
        kept = heard_words(text, asked.heard_samples / max(1, asked.of_samples))
        self._wiring.journal.revise(asked.record, kept, is_known=False)


def heard_words(text: str, share: float) -> str:
    """Return the words at the beginning of `text` that a share of its sound holds for certain."""
    if share >= 1:
        return text
    end = len(text.encode()[: int(len(text.encode()) * share)].decode(errors="ignore"))
    if end < len(text) and not text[end].isspace() and " " in text:
        end = text.rfind(" ", 0, end) + 1
    return text[:end].rstrip()
