"""The public protocol's events: what clients send, parsed, and what the server sends, before it is rendered.

Client events arrive in any spelling and leave here as one class each; their media members are bytes already, whether
they came as base64 or in a binary message. Server events carry the meaning only: their ids, names and shapes are the
business of `server/render.py`. `docs/protocol.md` shows an example of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from server.items import Item, ItemReference
from streaming.errors import ClientError

if TYPE_CHECKING:
    from server.settings import NamedFormat, Settings
    from streaming.packets import Usage


class EventError(ClientError):
    """A message that is no valid event; `event_id` is what the client called it, if it did."""

    def __init__(self, fault: ClientError, event_id: str | None) -> None:
        super().__init__(fault.code, fault.message, param=fault.param, **fault.facts)
        self.event_id = event_id


# ---- client events


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """The `response` of a `response.create`."""

    conversation: Literal["auto", "none"] = "auto"
    """`none`: out of band."""
    input: tuple[Item | ItemReference, ...] | None = None
    """Instead of the conversation's items."""
    metadata: dict[str, str] | None = None
    overrides: dict[str, object] | None = None
    """For `apply_response_overrides`; not checked yet."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where one picture lies in a chunk that is a sequence of them."""

    size: int
    offset_ms: int


def _todo(value: Any) -> Any:
    return value


Id = Annotated[str, Field(max_length=512)]
Milliseconds = Annotated[int, PlainValidator(_todo)]
Bytes = Annotated[bytes, PlainValidator(_todo)]


class _ClientEvent(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)

    event_id: Id | None = None


class SessionUpdate(_ClientEvent):
    type: Literal["session.update"] = "session.update"
    session: dict[str, Any]
    """For `correct_dialect` and `apply_session_update`; not checked yet."""


class TranscriptionSessionUpdate(_ClientEvent):
    type: Literal["transcription_session.update"] = "transcription_session.update"
    session: dict[str, Any]


class InputAudioAppend(_ClientEvent):
    type: Literal["input_audio_buffer.append"] = "input_audio_buffer.append"
    audio: Bytes
    """In the session's input format, cut anywhere."""


class InputAudioCommit(_ClientEvent):
    type: Literal["input_audio_buffer.commit"] = "input_audio_buffer.commit"


class InputAudioClear(_ClientEvent):
    type: Literal["input_audio_buffer.clear"] = "input_audio_buffer.clear"


class InputImageAppend(_ClientEvent):
    type: Literal["input_image_buffer.append"] = "input_image_buffer.append"
    image: Bytes
    """A picture file, not looked into."""
    timestamp_ms: Milliseconds | None = None
    """On the input clock."""


class InputVideoAppend(_ClientEvent):
    type: Literal["input_video_buffer.append"] = "input_video_buffer.append"
    video: Bytes
    format: str
    """`video/webm`, `video/mp4` or `image/jpeg`; parameters are gone."""
    stream_id: str = "default"
    seq: int | None = None
    standalone: bool = False
    last: bool = False
    start_ms: Milliseconds | None = None
    frames: tuple[Picture, ...] | None = None
    """Of `image/jpeg`: their sizes add up to the payload. None: the payload is one picture."""


class InputVideoClear(_ClientEvent):
    type: Literal["input_video_buffer.clear"] = "input_video_buffer.clear"


class ItemCreate(_ClientEvent):
    type: Literal["conversation.item.create"] = "conversation.item.create"
    item: Annotated[Item, PlainValidator(_todo)]
    previous_item_id: Id | None = None
    """None: at the end; "root": at the beginning."""


class ItemRetrieve(_ClientEvent):
    type: Literal["conversation.item.retrieve"] = "conversation.item.retrieve"
    item_id: Id


class ItemDelete(_ClientEvent):
    type: Literal["conversation.item.delete"] = "conversation.item.delete"
    item_id: Id


class ItemTruncate(_ClientEvent):
    type: Literal["conversation.item.truncate"] = "conversation.item.truncate"
    item_id: Id
    content_index: Milliseconds
    audio_end_ms: Milliseconds


class ResponseCreate(_ClientEvent):
    type: Literal["response.create"] = "response.create"
    response: Annotated[ResponseRequest, PlainValidator(_todo)] = ResponseRequest()


class ResponseCancel(_ClientEvent):
    type: Literal["response.cancel"] = "response.cancel"
    response_id: Id | None = None


class OutputAudioClear(_ClientEvent):
    """Meant for a transport that we do not have; ignored."""

    type: Literal["output_audio_buffer.clear"] = "output_audio_buffer.clear"


class PlaybackAck(_ClientEvent):
    type: Literal["playback.ack"] = "playback.ack"
    item_id: Id
    audio_end_ms: Milliseconds
    content_index: Milliseconds = 0


class SessionFinish(_ClientEvent):
    type: Literal["session.finish"] = "session.finish"


ClientEvent = (
    SessionUpdate
    | TranscriptionSessionUpdate
    | InputAudioAppend
    | InputAudioCommit
    | InputAudioClear
    | InputImageAppend
    | InputVideoAppend
    | InputVideoClear
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | OutputAudioClear
    | PlaybackAck
    | SessionFinish
)


def parse_text(message: str | bytes) -> ClientEvent:
    """Return the event of a text message.

    Raises:
        EventError: it is none.
    """
    raise NotImplementedError


def parse_binary(message: bytes) -> ClientEvent:
    """Return the event of a binary message: a line of JSON without the media member, a line feed, the media.

    Raises:
        EventError: it is none.
    """
    raise NotImplementedError


# ---- server events. Items in them are snapshots (`server.items.snapshot`).


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """Something a client sent had no effect, or our fault."""

    code: str
    message: str
    param: str | None = None
    event_id: str | None = None
    """Of the client's event."""
    type: Literal["invalid_request_error", "server_error"] = "invalid_request_error"

    @classmethod
    def of(cls, fault: ClientError, event_id: str | None = None) -> ErrorEvent:
        """Return what a client is told about its fault; the id that the fault knows itself comes first."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SessionCreated:
    settings: Settings


@dataclass(frozen=True, slots=True)
class SessionUpdated:
    settings: Settings


@dataclass(frozen=True, slots=True)
class TranscriptionSessionUpdated:
    settings: Settings


@dataclass(frozen=True, slots=True)
class ConversationCreated:
    """Flat dialects only, right after `SessionCreated`."""

    conversation_id: str


@dataclass(frozen=True, slots=True)
class SessionFinished:
    pass


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    audio_start_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    audio_end_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class InputCommitted:
    previous_item_id: str | None
    item_id: str


@dataclass(frozen=True, slots=True)
class InputCleared:
    pass


@dataclass(frozen=True, slots=True)
class InputTimeout:
    audio_start_ms: int
    audio_end_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class VideoCommitted:
    item_id: str
    num_frames: int
    num_dropped_frames: int
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class VideoCleared:
    pass


@dataclass(frozen=True, slots=True)
class VideoDropped:
    num_frames: int
    reason: Literal["rate", "memory", "late"]


@dataclass(frozen=True, slots=True)
class ItemAdded:
    previous_item_id: str | None
    item: Item


@dataclass(frozen=True, slots=True)
class ItemDone:
    """GA only."""

    previous_item_id: str | None
    item: Item


@dataclass(frozen=True, slots=True)
class ItemRetrieved:
    """The one event that may carry the user's sound back: if the item has `pcm` and it fits."""

    item: Item
    input_format: NamedFormat
    """That the sound is written in."""


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    item_id: str


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    item_id: str
    content_index: int
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class TranscriptionDelta:
    item_id: str
    content_index: int
    delta: str


@dataclass(frozen=True, slots=True)
class TranscriptionCompleted:
    item_id: str
    content_index: int
    transcript: str
    seconds: float
    """Of sound that was transcribed."""


@dataclass(frozen=True, slots=True)
class TranscriptionFailed:
    item_id: str
    content_index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StatusDetails:
    """Why a response is not completed."""

    reason: (
        Literal["turn_detected", "client_cancelled", "max_output_tokens", "content_filter"] | None
    ) = None
    """Of cancelled and incomplete ones."""
    error_code: str | None = None
    """Of failed ones."""
    error_message: str | None = None
    error_type: Literal["invalid_request_error", "server_error"] = "server_error"


@dataclass(frozen=True, slots=True)
class ResponseView:
    """A response as it stands."""

    id: str
    status: Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
    settings: Settings
    """That it is made with: the session's and its own overrides."""
    conversation_id: str | None
    """None: out of band."""
    status_details: StatusDetails | None = None
    output: tuple[Item, ...] = ()
    metadata: dict[str, str] | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ResponseCreated:
    response: ResponseView


@dataclass(frozen=True, slots=True)
class ResponseDone:
    response: ResponseView


@dataclass(frozen=True, slots=True)
class OutputItemAdded:
    response_id: str
    output_index: int
    item: Item


@dataclass(frozen=True, slots=True)
class OutputItemDone:
    response_id: str
    output_index: int
    item: Item


@dataclass(frozen=True, slots=True)
class _OfPart:
    """Where in a response the event belongs."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int


@dataclass(frozen=True, slots=True)
class ContentPartAdded(_OfPart):
    part_type: Literal["audio", "text"]
    text: str = ""
    """Of `audio` its transcript."""


@dataclass(frozen=True, slots=True)
class ContentPartDone(_OfPart):
    part_type: Literal["audio", "text"]
    text: str


@dataclass(frozen=True, slots=True)
class OutputAudioDelta(_OfPart):
    pcm: bytes
    """Whole samples, in the output format already."""


@dataclass(frozen=True, slots=True)
class OutputAudioDone(_OfPart):
    pass


@dataclass(frozen=True, slots=True)
class OutputTranscriptDelta(_OfPart):
    delta: str


@dataclass(frozen=True, slots=True)
class OutputTranscriptDone(_OfPart):
    transcript: str


@dataclass(frozen=True, slots=True)
class OutputTextDelta(_OfPart):
    delta: str


@dataclass(frozen=True, slots=True)
class OutputTextDone(_OfPart):
    text: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ArgumentsDone:
    response_id: str
    item_id: str
    output_index: int
    call_id: str
    name: str
    arguments: str


ServerEvent = (
    ErrorEvent
    | SessionCreated
    | SessionUpdated
    | TranscriptionSessionUpdated
    | ConversationCreated
    | SessionFinished
    | SpeechStarted
    | SpeechStopped
    | InputCommitted
    | InputCleared
    | InputTimeout
    | VideoCommitted
    | VideoCleared
    | VideoDropped
    | ItemAdded
    | ItemDone
    | ItemRetrieved
    | ItemDeleted
    | ItemTruncated
    | TranscriptionDelta
    | TranscriptionCompleted
    | TranscriptionFailed
    | ResponseCreated
    | ResponseDone
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputAudioDelta
    | OutputAudioDone
    | OutputTranscriptDelta
    | OutputTranscriptDone
    | OutputTextDelta
    | OutputTextDone
    | ArgumentsDelta
    | ArgumentsDone
)
