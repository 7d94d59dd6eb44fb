"""Items: what a conversation consists of, as clients send it and as the session keeps it.

An item in a server event must be a `snapshot`: the session goes on changing its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from server.fields import (
    read_base64,
    read_choice,
    read_list,
    read_name,
    read_object,
    read_text,
    refuse,
    require,
    text_bytes,
)
from streaming.errors import ClientError
from streaming.pcm import Encoding, SoundFormat, SoundReader, read_wav

MAX_ID = 128
"""Characters of an item's id or a call's."""
MAX_NAME = 128
MAX_ITEMS = 2000
MAX_PARTS = 1000
MAX_TEXT_BYTES = 128 * 1024
"""Of one item, as JSON."""
MAX_AUDIO_BYTES = 15 * 1024 * 1024
MAX_WAV_BYTES = 1024 * 1024
"""WAV files are decoded on the spot, which takes a tenth of a second for so many."""
MAX_IMAGE_BYTES = 8 * 1024 * 1024
MAX_VIDEO_BYTES = 15 * 1024 * 1024
VIDEO_TYPES = ("video/webm", "video/mp4")

ItemStatus = Literal["in_progress", "completed", "incomplete"]


# ---- parts


@dataclass(slots=True)
class InputText:
    text: str


@dataclass(slots=True)
class InputAudio:
    """What a user said."""

    pcm: bytes | None = None
    """16 kHz int16 mono. None: nothing kept, or still `encoded`."""
    transcript: str | None = None
    encoded: bytes | None = None
    """As a client sent it, in the session's input format; whoever takes the item in decodes it to `pcm`."""


@dataclass(slots=True)
class InputImage:
    """A picture file: JPEG, PNG or WebP if the client told the truth; nobody has looked inside yet."""

    image: bytes | None
    """None: no longer kept."""


@dataclass(slots=True)
class InputVideo:
    """A video file, not looked into yet."""

    video: bytes | None
    """None: no longer kept."""
    format: str
    """Media type: one of `VIDEO_TYPES`."""


@dataclass(slots=True)
class OutputText:
    text: str


@dataclass(slots=True)
class OutputAudio:
    """What an assistant said; its sound is not kept."""

    transcript: str


UserPart = InputText | InputAudio | InputImage | InputVideo
AssistantPart = OutputText | OutputAudio
Part = UserPart | AssistantPart

# ---- items


@dataclass(slots=True)
class UserMessage:
    """Empty content: a turn of camera frames without sound."""

    id: str
    """Empty in what a client sent without one: whoever takes the item in gives it one."""
    content: list[UserPart] = field(default_factory=list)
    status: ItemStatus = "completed"


@dataclass(slots=True)
class SystemMessage:
    id: str
    content: list[InputText] = field(default_factory=list)
    status: ItemStatus = "completed"


@dataclass(slots=True)
class AssistantMessage:
    id: str
    content: list[AssistantPart] = field(default_factory=list)
    status: ItemStatus = "completed"


@dataclass(slots=True)
class FunctionCall:
    id: str
    name: str
    call_id: str
    arguments: str = ""
    """JSON as the model wrote it; empty until it is complete."""
    status: ItemStatus = "completed"


@dataclass(slots=True)
class FunctionCallOutput:
    id: str
    call_id: str
    output: str
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True)
class ItemReference:
    """Stands for an item of the conversation in the input of an out-of-band response."""

    id: str


Message = UserMessage | SystemMessage | AssistantMessage
Item = Message | FunctionCall | FunctionCallOutput


def snapshot(item: Item) -> Item:
    """Return a copy that later changes of the item and its parts do not reach; media are shared."""
    if isinstance(item, FunctionCall | FunctionCallOutput):
        return replace(item)
    return replace(item, content=[replace(part) for part in item.content])  # type: ignore[arg-type]  # same kinds


# ---- from clients


def parse_item(value: object, where: str) -> Item:
    """Return the item that a client describes.

    Raises:
        ClientError: it is no item; `param` is below `where`.
    """
    members = read_object(value, where)
    # Some clients leave the type of a message out.
    kind = "message" if "role" in members and "type" not in members else None
    kind = read_choice(kind or require(members, "type", where), f"{where}.type", tuple(_ITEM_KINDS))
    return _ITEM_KINDS[kind](members, where)


def parse_input(value: object, where: str) -> tuple[Item | ItemReference, ...]:
    """Return the items and references of an out-of-band response's input.

    Raises:
        ClientError: as `parse_item`.
    """
    entries = read_list(value, where, MAX_ITEMS)
    return tuple(_parse_entry(entry, f"{where}.{n}") for n, entry in enumerate(entries))


def read_media(value: object, where: str, most_bytes: int, *, bad: str, too_large: str) -> bytes:
    """Return the bytes of base64, with or without a data URI around it.

    Args:
        bad: code of the error if it is neither.
        too_large: code of the error if there are more than `most_bytes`.
    """
    if isinstance(value, str) and not value.startswith("data:") and "://" in value[:16]:
        refuse(where, "a data URI; addresses are not fetched")
    if isinstance(value, str) and value.startswith("data:"):
        # The declared type is not believed anyway: whoever decodes looks at the bytes.
        head, _, value = value.partition(",")
        if not head.endswith(";base64"):
            raise ClientError(bad, f"'{where}' must be a data URI in base64.", param=where)
    try:
        return read_base64(value, where, most_bytes, too_large)
    except ClientError as fault:
        if fault.code == too_large or not isinstance(value, str):
            raise
        raise ClientError(bad, f"'{where}' must be base64.", param=where) from None


def _parse_entry(entry: object, where: str) -> Item | ItemReference:
    members = read_object(entry, where)
    if members.get("type") != "item_reference":
        return parse_item(members, where)
    return ItemReference(read_name(require(members, "id", where), f"{where}.id", MAX_ID))


def _parse_message(members: dict[str, object], where: str) -> Message:
    role = read_choice(require(members, "role", where), f"{where}.role", tuple(_ROLES))
    make, kinds = _ROLES[role]
    content = members.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif content is None:
        content = []
    entries = read_list(content, f"{where}.content", MAX_PARTS)
    parts = [_parse_part(part, f"{where}.content.{n}", kinds) for n, part in enumerate(entries)]
    if sum(text_bytes(_shown_text(part)) for part in parts) > MAX_TEXT_BYTES:
        refuse(f"{where}.content", f"at most {MAX_TEXT_BYTES} bytes of text")
    return make(_read_id(members, where), parts)


def _parse_part(value: object, where: str, kinds: _PartKinds) -> Part:
    members = read_object(value, where)
    kind = read_choice(require(members, "type", where), f"{where}.type", tuple(kinds))
    part: Part = kinds[kind](members, where)
    return part


def _parse_call(members: dict[str, object], where: str) -> FunctionCall:
    return FunctionCall(
        id=_read_id(members, where),
        name=read_name(require(members, "name", where), f"{where}.name", MAX_NAME),
        call_id=read_name(require(members, "call_id", where), f"{where}.call_id", MAX_ID),
        arguments=_read_text(members, "arguments", where),
    )


def _parse_call_output(members: dict[str, object], where: str) -> FunctionCallOutput:
    require(members, "output", where)
    return FunctionCallOutput(
        id=_read_id(members, where),
        call_id=read_name(require(members, "call_id", where), f"{where}.call_id", MAX_ID),
        output=_read_text(members, "output", where),
    )


def _read_id(members: dict[str, object], where: str) -> str:
    given = members.get("id")
    return "" if given in (None, "") else read_name(given, f"{where}.id", MAX_ID)


def _read_text(members: dict[str, object], name: str, where: str) -> str:
    given = members.get(name)
    return "" if given is None else read_text(given, f"{where}.{name}", MAX_TEXT_BYTES)


def _input_text(members: dict[str, object], where: str) -> InputText:
    require(members, "text", where)
    return InputText(_read_text(members, "text", where))


def _output_text(members: dict[str, object], where: str) -> OutputText:
    require(members, "text", where)
    return OutputText(_read_text(members, "text", where))


def _output_audio(members: dict[str, object], where: str) -> OutputAudio:
    return OutputAudio(_read_text(members, "transcript", where))


def _input_audio(members: dict[str, object], where: str) -> InputAudio:
    transcript = _read_text(members, "transcript", where) or None
    if (nested := members.get("input_audio")) is not None:
        return _chat_audio(read_object(nested, f"{where}.input_audio"), f"{where}.input_audio")
    if (audio := members.get("audio")) is None:
        return InputAudio(transcript=transcript)
    encoded = read_base64(audio, f"{where}.audio", MAX_AUDIO_BYTES)
    return InputAudio(transcript=transcript, encoded=encoded)


def _chat_audio(members: dict[str, object], where: str) -> InputAudio:
    """The form of chat completions, which names its own format: a WAV file or, as here, the session's."""
    where_data = f"{where}.data"
    encoded = read_base64(require(members, "data", where), where_data, MAX_AUDIO_BYTES)
    if encoded[:4] != b"RIFF":
        read_choice(members.get("format") or "pcm16", f"{where}.format", ("pcm16", "pcm"))
        return InputAudio(encoded=encoded)
    if len(encoded) > MAX_WAV_BYTES:
        refuse(where_data, f"a WAV file of at most {MAX_WAV_BYTES} bytes")
    try:
        pcm, rate = read_wav(encoded)
    except ClientError as fault:
        raise ClientError("invalid_value", fault.message, param=where_data) from None
    reader = SoundReader(SoundFormat(Encoding.PCM16, rate))
    return InputAudio(pcm=reader.push(pcm) + reader.flush())


def _input_image(members: dict[str, object], where: str) -> InputImage:
    url, where = _url(members, "image_url", where)
    return InputImage(read_image(url, where))


def read_image(value: object, where: str) -> bytes:
    """Return a picture file from base64 or a data URI; nobody looks inside."""
    return read_media(
        value, where, MAX_IMAGE_BYTES, bad="invalid_image", too_large="image_too_large"
    )


def _input_video(members: dict[str, object], where: str) -> InputVideo:
    url, where = _url(members, "video_url", where)
    media_type = url[5:].partition(",")[0].partition(";")[0] if url.startswith("data:") else ""
    if media_type not in VIDEO_TYPES:
        raise ClientError(
            "unsupported_media_type",
            f"'{where}' must be a data URI of " + " or ".join(VIDEO_TYPES) + ".",
            param=where,
        )
    video = read_media(url, where, MAX_VIDEO_BYTES, bad="invalid_value", too_large="invalid_value")
    return InputVideo(video, media_type)


def _url(members: dict[str, object], name: str, where: str) -> tuple[str, str]:
    """The address and where it stands: plain, or in an object as chat completions have it."""
    given, where = require(members, name, where), f"{where}.{name}"
    if isinstance(given, dict):
        given, where = require(given, "url", where), f"{where}.url"
    if not isinstance(given, str):
        refuse(where, "a data URI")
    return given, where


def _shown_text(part: Part) -> str:
    if isinstance(part, InputText | OutputText):
        return part.text
    if isinstance(part, InputAudio | OutputAudio):
        return part.transcript or ""
    return ""


_PartKinds = dict[str, Callable[[dict[str, object], str], Any]]  # of parts that the role may have
_USER_PARTS: _PartKinds = {
    "input_text": _input_text,
    "input_audio": _input_audio,
    "input_image": _input_image,
    "input_video": _input_video,
    # Aliases, most of them from chat completions.
    "text": _input_text,
    "audio": _input_audio,
    "image_url": _input_image,
    "video_url": _input_video,
}
_SYSTEM_PARTS: _PartKinds = {"input_text": _input_text, "text": _input_text}
_ASSISTANT_PARTS: _PartKinds = {
    "output_text": _output_text,
    "output_audio": _output_audio,
    "text": _output_text,
    "audio": _output_audio,
}
_ROLES: dict[str, tuple[Callable[[str, list[Any]], Message], _PartKinds]] = {
    "user": (UserMessage, _USER_PARTS),
    "system": (SystemMessage, _SYSTEM_PARTS),
    "developer": (SystemMessage, _SYSTEM_PARTS),
    "assistant": (AssistantMessage, _ASSISTANT_PARTS),
}
_ITEM_KINDS: dict[str, Callable[[dict[str, object], str], Item]] = {
    "message": _parse_message,
    "function_call": _parse_call,
    "function_call_output": _parse_call_output,
}
