"""The public protocol's events: what clients send, parsed, and what the server sends, before it is rendered.

Client events arrive in any spelling and leave here as one class each; their media members are bytes already, whether
they came as base64 or in a binary message. Server events carry the meaning only: their ids, names and shapes are the
business of `server/render.py`. `docs/protocol.md` shows an example of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import from_json

from server.fields import (
    read_base64,
    read_choice,
    read_flag,
    read_list,
    read_name,
    read_object,
    read_whole,
    refuse,
    require,
)
from server.items import (
    MAX_AUDIO_BYTES,
    MAX_ID,
    MAX_VIDEO_BYTES,
    Item,
    ItemReference,
    parse_input,
    parse_item,
    read_image,
    read_media,
)
from streaming.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.settings import NamedFormat, Settings
    from streaming.packets import Usage


MAX_EVENT_ID = 512
MAX_HEADER_BYTES = 4096
"""Of a binary message."""
MAX_UNCOUNTED_BYTES = 512 * 1024
MAX_VALUES = 200_000
"""Of one message. Millions of empty arrays would take the event loop three seconds and a gigabyte."""
MAX_PICTURES = 600
"""In one chunk: ten seconds at sixty a second."""
CHUNK_TYPES = ("video/webm", "video/mp4", "image/jpeg")
Conversation = Literal["auto", "none"]
CONVERSATIONS: tuple[Conversation, ...] = ("auto", "none")
MEDIA_MEMBERS: Mapping[str, str] = MappingProxyType(
    {
        "input_audio_buffer.append": "audio",
        "input_image_buffer.append": "image",
        "input_video_buffer.append": "video",
    }
)
"""What a binary message's payload is, by event type."""


class EventError(ClientError):
    """A message that is no valid event; `event_id` is what the client called it, if it did."""

    def __init__(self, fault: ClientError, event_id: str | None) -> None:
        super().__init__(fault.code, fault.message, param=fault.param, **fault.facts)
        self.event_id = event_id


# ---- client events


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """The `response` of a `response.create`."""

    conversation: Conversation = "auto"
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


# ---- readers of members; `where` is the member's name


def _checked(read: Callable[[Any, str], object], *, null: object = None) -> PlainValidator:
    """A validator from a reader; a null member stands for `null` unless that is None."""

    def validate(value: object, member: ValidationInfo) -> object:
        if value is None and null is not None:
            return null
        assert member.field_name is not None, "used on members only"
        return read(value, member.field_name)

    return PlainValidator(validate)


def _read_event_id(value: object, where: str) -> str:
    if isinstance(value, str) and len(value) <= MAX_EVENT_ID:
        return value
    refuse(where, f"a string of at most {MAX_EVENT_ID} characters")


def _read_id(value: object, where: str) -> str:
    return read_name(value, where, MAX_ID)


def _read_optional_id(value: object, where: str) -> str | None:
    """Some clients write an absent id as an empty string."""
    return None if value in (None, "") else _read_id(value, where)


def _read_audio(value: object, where: str) -> bytes:
    return read_base64(value, where, MAX_AUDIO_BYTES)


def _read_video(value: object, where: str) -> bytes:
    return read_media(value, where, MAX_VIDEO_BYTES, bad="invalid_value", too_large="invalid_value")


def _read_chunk_type(value: object, where: str) -> str:
    media_type = value.partition(";")[0].strip().lower() if isinstance(value, str) else ""
    if media_type in CHUNK_TYPES:
        return media_type
    raise ClientError(
        "unsupported_media_type", f"'{where}' must be one of {', '.join(CHUNK_TYPES)}.", param=where
    )


def _read_pictures(value: object, where: str) -> tuple[Picture, ...]:
    if isinstance(value, tuple):
        return value
    pictures = read_list(value, where, MAX_PICTURES)
    return tuple(_read_picture(picture, f"{where}.{n}") for n, picture in enumerate(pictures))


def _read_picture(value: object, where: str) -> Picture:
    members = read_object(value, where)
    return Picture(
        size=read_whole(require(members, "size", where), f"{where}.size"),
        offset_ms=read_whole(members.get("offset_ms") or 0, f"{where}.offset_ms"),
    )


def _read_item(value: object, where: str) -> Item:
    return value if isinstance(value, Item) else parse_item(value, where)


def _read_response(value: object, where: str) -> ResponseRequest:
    if isinstance(value, ResponseRequest):
        return value
    members = read_object(value, where)
    asked = members.get("input")
    return ResponseRequest(
        conversation=read_choice(
            members.get("conversation") or "auto", f"{where}.conversation", CONVERSATIONS
        ),
        input=None if asked is None else parse_input(asked, f"{where}.input"),
        metadata=_read_metadata(members.get("metadata"), f"{where}.metadata"),
        overrides=members,
    )


def _read_metadata(value: object, where: str) -> dict[str, str] | None:
    """The keys are the client's words, so errors name the whole."""
    if value is None:
        return None
    pairs = read_object(value, where)
    if len(pairs) > 16 or any(
        len(key) > 64 or not isinstance(text, str) or len(text) > 512 for key, text in pairs.items()
    ):
        refuse(where, "at most 16 pairs of keys to 64 and texts to 512 characters")
    return cast("dict[str, str]", pairs)


EventId = Annotated[str, _checked(_read_event_id)]
Id = Annotated[str, _checked(_read_id)]
OptionalId = Annotated[str | None, _checked(_read_optional_id)]
Whole = Annotated[int, _checked(read_whole)]
Flag = Annotated[bool, _checked(read_flag, null=False)]


class _ClientEvent(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    event_id: EventId | None = None


class SessionUpdate(_ClientEvent):
    type: Literal["session.update"] = "session.update"
    session: Annotated[dict[str, Any], _checked(read_object)]
    """For `correct_dialect` and `apply_session_update`; not checked yet."""


class TranscriptionSessionUpdate(_ClientEvent):
    type: Literal["transcription_session.update"] = "transcription_session.update"
    session: Annotated[dict[str, Any], _checked(read_object)]


class InputAudioAppend(_ClientEvent):
    type: Literal["input_audio_buffer.append"] = "input_audio_buffer.append"
    audio: Annotated[bytes, _checked(_read_audio)]
    """In the session's input format, cut anywhere."""


class InputAudioCommit(_ClientEvent):
    type: Literal["input_audio_buffer.commit"] = "input_audio_buffer.commit"


class InputAudioClear(_ClientEvent):
    type: Literal["input_audio_buffer.clear"] = "input_audio_buffer.clear"


class InputImageAppend(_ClientEvent):
    type: Literal["input_image_buffer.append"] = "input_image_buffer.append"
    image: Annotated[bytes, _checked(read_image)]
    """A picture file, not looked into."""
    timestamp_ms: Whole | None = None
    """On the input clock."""


class InputVideoAppend(_ClientEvent):
    type: Literal["input_video_buffer.append"] = "input_video_buffer.append"
    video: Annotated[bytes, _checked(_read_video)]
    format: Annotated[str, _checked(_read_chunk_type)]
    """`video/webm`, `video/mp4` or `image/jpeg`; parameters are gone."""
    stream_id: Annotated[str, _checked(_read_id, null="default")] = "default"
    seq: Whole | None = None
    standalone: Flag = False
    last: Flag = False
    start_ms: Whole | None = None
    frames: Annotated[tuple[Picture, ...], _checked(_read_pictures)] | None = None
    """Of `image/jpeg`: their sizes add up to the payload. None: the payload is one picture."""

    @model_validator(mode="after")
    def _require_whole_pictures(self) -> Self:
        sizes = [picture.size for picture in self.frames or ()]
        if self.format == "image/jpeg" and sizes and sum(sizes) != len(self.video):
            refuse("frames", f"sizes that add up to the {len(self.video)} bytes of the payload")
        return self


class InputVideoClear(_ClientEvent):
    type: Literal["input_video_buffer.clear"] = "input_video_buffer.clear"


class ItemCreate(_ClientEvent):
    type: Literal["conversation.item.create"] = "conversation.item.create"
    item: Annotated[Item, _checked(_read_item)]
    previous_item_id: OptionalId = None
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
    content_index: Whole
    audio_end_ms: Whole


class ResponseCreate(_ClientEvent):
    type: Literal["response.create"] = "response.create"
    response: Annotated[ResponseRequest, _checked(_read_response, null=ResponseRequest())] = (
        ResponseRequest()
    )


class ResponseCancel(_ClientEvent):
    type: Literal["response.cancel"] = "response.cancel"
    response_id: OptionalId = None


class OutputAudioClear(_ClientEvent):
    """Meant for a transport that we do not have; ignored."""

    type: Literal["output_audio_buffer.clear"] = "output_audio_buffer.clear"


class PlaybackAck(_ClientEvent):
    type: Literal["playback.ack"] = "playback.ack"
    item_id: Id
    audio_end_ms: Whole
    content_index: Annotated[int, _checked(read_whole, null=0)] = 0


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
    if len(message) > MAX_UNCOUNTED_BYTES and _num_values(message) > MAX_VALUES:
        # Its id is in there, but this is no client that would look at it.
        raise EventError(
            ClientError("invalid_json", f"The message has more than {MAX_VALUES} values."), None
        )
    try:
        return _EVENTS.validate_json(message)
    except (ValidationError, ClientError) as fault:
        reason = _explain(fault)
    try:
        members = from_json(message)
    except (ValueError, TypeError):  # the latter: a str that is no Unicode
        members = None
    raise EventError(reason, _event_id(members))


def parse_binary(message: bytes) -> ClientEvent:
    """Return the event of a binary message: a line of JSON without the media member, a line feed, the media.

    Raises:
        EventError: it is none.
    """
    end = message.find(b"\n", 0, MAX_HEADER_BYTES + 1)
    try:
        members = from_json(message[: max(end, 0)])
    except ValueError:
        members = None
    kind = members.get("type") if isinstance(members, dict) else None
    member = MEDIA_MEMBERS.get(kind) if isinstance(kind, str) else None
    if member is None:
        raise EventError(ClientError("invalid_binary_frame", _BINARY_FORM), _event_id(members))
    members[member] = message[end + 1 :]
    try:
        return _EVENTS.validate_python(members)
    except (ValidationError, ClientError) as fault:
        reason = _explain(fault)
    raise EventError(reason, _event_id(members))


def _num_values(message: str | bytes) -> int:
    """At least as many values as the message has: what stands in strings counts, too."""
    if isinstance(message, str):
        return sum(map(message.count, (",", "[", "{")))
    return sum(map(message.count, (b",", b"[", b"{")))


_BINARY_FORM = (
    "A binary message is one line of JSON of at most 4096 bytes, a line feed and the bytes of one of: "
    + ", ".join(MEDIA_MEMBERS)
    + "."
)
_EVENTS: TypeAdapter[ClientEvent] = TypeAdapter(
    Annotated[ClientEvent, Field(discriminator="type")],
    config=ConfigDict(hide_input_in_errors=True),
)


def _explain(fault: ValidationError | ClientError) -> ClientError:
    """In our words: what pydantic says may quote the client."""
    if isinstance(fault, ClientError):
        return fault
    first = fault.errors(include_url=False, include_context=False, include_input=False)[0]
    match first["type"]:
        case "missing" | "union_tag_not_found":
            # Members of an event are behind its tag; only `type` itself has none.
            where = str(first["loc"][-1]) if first["loc"] else "type"
            message = f"Missing required parameter: '{where}'."
            return ClientError("missing_required_parameter", message, param=where)
        case "union_tag_invalid":
            return ClientError("invalid_value", "Unknown event type.", param="type")
        case _:
            return ClientError("invalid_json", "The message is not a JSON object.")


def _event_id(members: object) -> str | None:
    given = members.get("event_id") if isinstance(members, dict) else None
    return given if isinstance(given, str) and len(given) <= MAX_EVENT_ID else None


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
        if isinstance(fault, EventError) and fault.event_id is not None:
            event_id = fault.event_id
        facts = ", ".join(f"{name} {value}" for name, value in fault.facts.items())
        message = fault.message or fault.code
        return cls(
            code=fault.code,
            message=f"{message} ({facts})" if facts else message,
            param=fault.param,
            event_id=event_id,
        )


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
