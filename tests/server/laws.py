"""Laws of what a client is sent: order within responses, one end for each, every event answered in its turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server import events as ev
from server.items import AssistantMessage, FunctionCall

if TYPE_CHECKING:
    from server.events import ClientEvent, ServerEvent
    from server.session import Session

CODES = frozenset(
    "invalid_json missing_required_parameter invalid_value input_audio_buffer_commit_empty "
    "input_audio_buffer_too_large response_cancel_not_active conversation_already_has_active_response "
    "item_create_duplicate_item_id item_create_invalid_previous_item_id item_retrieve_invalid_item_id "
    "item_delete_invalid_item_id item_truncate_invalid_item_id invalid_image image_too_large "
    "unsupported_media_type media_decode_error audio_source_conflict rate_limit_exceeded server_error "
    "session_expired".split()
)
DELTAS = (ev.OutputAudioDelta, ev.OutputTranscriptDelta, ev.OutputTextDelta, ev.ArgumentsDelta)
MESSAGE_END = {
    "audio": ("OutputAudioDone", "OutputTranscriptDone", "ContentPartDone"),
    "text": ("OutputTextDone", "ContentPartDone"),
}


@dataclass
class _Item:
    item_id: str
    index: int
    is_call: bool
    part: str | None = None
    text: str = ""
    said: list[str] = field(default_factory=list)
    """Names of the closing events so far."""

    @property
    def is_done(self) -> bool:
        return "OutputItemDone" in self.said


@dataclass
class _Response:
    is_out_of_band: bool
    items: list[_Item] = field(default_factory=list)
    is_done: bool = False


class Laws:
    """Watches both directions of one connection."""

    def __init__(self) -> None:
        self.responses: dict[str, _Response] = {}
        self._expected: list[tuple[str, str]] = []
        """Direct answers that are due, in order: event id, and how the answer is recognised."""
        self._answered: list[str] = []
        self._is_finishing = False
        self._num_events = 0
        self._named_by_detector: set[str] = set()

    # ---- from the client

    def receive(self, event: ClientEvent) -> None:
        if self._is_finishing:
            return
        if isinstance(event, ev.SessionFinish):
            self._is_finishing = True
            return
        mark = _mark(event)
        if mark is not None:
            assert event.event_id is not None
            self._expected.append((event.event_id, mark))

    # ---- to the client

    def send(self, event: ServerEvent) -> None:
        self._num_events += 1
        if self._num_events == 1:
            assert isinstance(event, ev.SessionCreated), "session.created comes first"
        if isinstance(event, ev.ErrorEvent):
            assert event.code in CODES, event
        if isinstance(event, ev.SpeechStopped | ev.InputTimeout):
            self._named_by_detector.add(event.item_id)
        self._watch_response(event)
        self._watch_answer(event)

    def _watch_response(self, event: ServerEvent) -> None:
        if isinstance(event, ev.ResponseCreated):
            view = event.response
            assert view.id not in self.responses, "announced twice"
            assert view.status == "in_progress" and view.output == ()
            self.responses[view.id] = _Response(view.conversation_id is None)
            return
        if isinstance(event, ev.ResponseDone):
            self._end(event)
            return
        if isinstance(event, ev.ItemAdded | ev.ItemDone):
            self._watch_conversation(event)
            return
        response_id = getattr(event, "response_id", None)
        if response_id is None:
            return
        assert response_id in self.responses, f"{event} before response.created"
        response = self.responses[response_id]
        assert not response.is_done, f"{event} after response.done"
        self._watch_item(response, event)

    def _watch_item(self, response: _Response, event: ServerEvent) -> None:
        if isinstance(event, ev.OutputItemAdded):
            assert event.output_index == len(response.items), "indexes have no gaps"
            assert event.item.status == "in_progress"
            assert all(item.is_done for item in response.items), "one item at a time"
            is_call = isinstance(event.item, FunctionCall)
            response.items.append(_Item(event.item.id, event.output_index, is_call))
            return
        assert response.items, f"{event} before output_item.added"
        item = response.items[-1]
        assert getattr(event, "output_index", item.index) == item.index
        assert getattr(event, "item_id", item.item_id) == item.item_id
        name = type(event).__name__
        match event:
            case ev.ContentPartAdded():
                assert item.part is None and not item.is_call
                item.part = event.part_type
            case ev.OutputTranscriptDelta() | ev.OutputTextDelta():
                assert item.part == ("text" if isinstance(event, ev.OutputTextDelta) else "audio")
                assert not item.said and event.delta
                item.text += event.delta
            case ev.OutputAudioDelta():
                assert item.part == "audio" and not item.said and event.pcm
            case ev.ArgumentsDelta():
                item.text += event.delta
            case ev.ArgumentsDone():
                assert item.text == event.arguments
                item.said.append(name)
            case ev.OutputItemDone():
                self._end_item(item, event)
            case _:
                text = getattr(event, "transcript", getattr(event, "text", item.text))
                assert text == item.text, f"{event}: the deltas said {item.text!r}"
                item.said.append(name)

    def _end_item(self, item: _Item, event: ev.OutputItemDone) -> None:
        shown = event.item
        assert shown.id == item.item_id and shown.status != "in_progress"
        if isinstance(shown, FunctionCall):
            assert item.said in (["ArgumentsDone"], ["ArgumentsDone", "ItemDone"]), item.said
            assert shown.arguments == item.text
        else:
            assert isinstance(shown, AssistantMessage) and item.part is not None
            expected = MESSAGE_END[item.part]
            assert tuple(n for n in item.said if n != "ItemDone") == expected, item.said
            [part] = shown.content
            assert getattr(part, "transcript", getattr(part, "text", None)) == item.text
        item.said.append("OutputItemDone")

    def _watch_conversation(self, event: ev.ItemAdded | ev.ItemDone) -> None:
        """Items of the conversation, seen from the response that makes them."""
        if not isinstance(event.item, AssistantMessage | FunctionCall):
            return
        for response in self.responses.values():
            for item in response.items:
                if item.item_id != event.item.id or item.is_done:
                    continue  # a client may use the id of a deleted item again
                assert not response.is_out_of_band, "out of band, yet in the conversation"
                if isinstance(event, ev.ItemDone):
                    assert "ItemDone" not in item.said
                    item.said.append("ItemDone")

    def _end(self, event: ev.ResponseDone) -> None:
        view = event.response
        response = self.responses[view.id]
        assert not response.is_done, "response.done twice"
        response.is_done = True
        assert view.usage is not None and view.status != "in_progress"
        assert (view.status == "completed") == (view.status_details is None)
        assert [item.id for item in view.output] == [item.item_id for item in response.items]
        assert all(item.is_done for item in response.items), "an item was left open"

    def _watch_answer(self, event: ServerEvent) -> None:
        if self._is_finishing and not self._expected:
            return
        match event:
            case ev.ErrorEvent() if event.event_id is not None:
                self._answer(event.event_id)
            case ev.SessionUpdated():
                self._answer_next("updated")
            case ev.TranscriptionSessionUpdated():
                self._answer_next("transcription updated")
            case ev.InputCleared():
                self._answer_next("cleared")
            case ev.VideoCleared():
                self._answer_next("video cleared")
            case ev.InputCommitted() if event.item_id not in self._named_by_detector:
                self._answer_next("committed")
            case ev.ItemAdded() if event.item.id.startswith("c"):
                self._answer_if(f"added {event.item.id}")
            case ev.ItemRetrieved():
                self._answer_next(f"retrieved {event.item.id}")
            case ev.ItemDeleted():
                self._answer_next(f"deleted {event.item_id}")
            case ev.ItemTruncated():
                self._answer_next(f"truncated {event.item_id}")
            case ev.ResponseCreated() if event.response.metadata is not None:
                self._answer_next(f"created {event.response.metadata['event']}")

    def _answer(self, event_id: str) -> None:
        """An error names its event; events that are not answered when all is well may have one at any time."""
        if any(event_id == due for due, _ in self._expected):
            assert self._expected[0][0] == event_id, f"{event_id} before {self._expected[0]}"
            self._expected.pop(0)

    def _answer_next(self, mark: str) -> None:
        if not self._expected and self._is_finishing:
            return
        assert self._expected and self._expected[0][1] == mark, f"{mark}; due: {self._expected[:2]}"
        self._expected.pop(0)

    def _answer_if(self, mark: str) -> None:
        if self._expected and self._expected[0][1] == mark:
            self._expected.pop(0)
        else:
            assert all(due != mark for _, due in self._expected), f"{mark} too early"

    # ---- at any time, and at the end

    def check_state(self, session: Session) -> None:
        """Nothing of a stopped response waits to be sent, and nothing grows without bound."""
        responses = session._responses
        for asked in responses._asked():
            reply = asked.reply
            if reply.state.name == "CLOSING":
                waiting = [q.event for q in session._outbox._queue if q.response_id == reply.id]
                assert not any(isinstance(e, DELTAS[:3]) for e in waiting), "stale delta"
        assert len(session._held) <= session._limits.max_held_events + 1
        assert len(responses._others) <= session._limits.max_out_of_band
        assert session._outbox.unsent_bytes == sum(q.num_bytes for q in session._outbox._queue)
        assert len(session._video._streams) <= 2 and len(session._video._stills) <= 64

    def check_end(self, *, is_finished: bool) -> None:
        open_ids = [i for i, response in self.responses.items() if not response.is_done]
        assert not open_ids, f"without response.done: {open_ids}"
        if not is_finished:
            assert not self._expected, f"never answered: {self._expected}"


def _mark(event: ClientEvent) -> str | None:
    """How a client event's direct answer is recognised if all is well; None if it has none."""
    match event:
        case ev.SessionUpdate():
            return "updated"
        case ev.TranscriptionSessionUpdate():
            return "transcription updated"
        case ev.InputAudioCommit():
            return "committed"
        case ev.InputAudioClear():
            return "cleared"
        case ev.InputVideoClear():
            return "video cleared"
        case ev.ItemCreate() if event.item.id.startswith("c"):  # else perhaps a duplicate
            return f"added {event.item.id}"
        case ev.ItemRetrieve():
            return f"retrieved {event.item_id}"
        case ev.ItemDelete():
            return f"deleted {event.item_id}"
        case ev.ItemTruncate():
            return f"truncated {event.item_id}"
        case ev.ResponseCreate():
            return f"created {event.event_id}"
    return None
