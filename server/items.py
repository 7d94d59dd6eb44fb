"""Items: what a conversation consists of, as clients send it and as the session keeps it.

An item in a server event must be a `snapshot`: the session goes on changing its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

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


def parse_item(value: object, where: str) -> Item:
    """Return the item that a client describes.

    Raises:
        ClientError: it is no item; `param` is below `where`.
    """
    raise NotImplementedError


def parse_input(value: object, where: str) -> tuple[Item | ItemReference, ...]:
    """Return the items and references of an out-of-band response's input.

    Raises:
        ClientError: as `parse_item`.
    """
    raise NotImplementedError
