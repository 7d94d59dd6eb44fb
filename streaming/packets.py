"""Command and Reply: everything that crosses the process boundary, and nothing else.

Gateway → worker: commands. Worker → gateway: replies. A packet is one msgpack array whose first element is its tag.

    worker   Hello                                       first packet on the link
             Loading*  Ready  WorkerStatus*              start-up, then once a second
    gateway  OpenSession                                 → SessionOpened | SessionFailed
             (OpenClip AppendPair* AppendChunk* | AppendText | AppendImage)*   input of a turn, as it comes
             CommitTurn                                  → TextDelta*, AudioDelta* in any mixture, TurnDone
             HoldTurn, ReportPlayed                      no answer; they steer how fast the reply is made
             CancelTurn                                  → TurnTruncated if it says what was heard, then TurnDone
             TruncateTurn                                → TurnTruncated
             CloseSession                                no answer

Everything below session level carries `turn_id`, which grows by one per turn and is never reused. **Stale law:** a
receiver drops a packet whose `turn_id` is not the current one. Only `TruncateTurn` and its answer name earlier ones.

Faults: `InputRefused` says that one piece of input was left out and the turn goes on; `TurnDone` with `FAILED` that one
reply is lost; `SessionFailed` that the session is gone and its id is free.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeVar

import msgspec

from streaming.errors import LinkError
from streaming.media import ClipStart, FramePair, MediaChunk

PROTOCOL = 3
"""Grows with every change of this file that the other side could notice."""
MAX_PACKET_BYTES = 32 * 1024 * 1024


class DoneReason(StrEnum):
    """Why a reply ended."""

    COMPLETED = "completed"
    MAX_TOKENS = "max_tokens"
    """Ended by a limit: `ReplyOptions.max_text_tokens`, `max_codes`, or the model's context."""
    CANCELLED = "cancelled"
    FAILED = "failed"


class SamplingOptions(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are drawn. Temperature 0 is greedy; `top_k` 0 keeps all; None: as the model's own settings say."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


class ReplyOptions(msgspec.Struct, frozen=True, array_like=True):
    """How one reply is made. None means the model's own value."""

    speech: bool = True
    voice: str | None = None
    """None: the session's."""
    thinker: SamplingOptions | None = None
    talker: SamplingOptions | None = None
    max_text_tokens: int | None = None
    max_codes: int | None = None
    noise_seed: int = 0
    """Of the codec decoder's starting noise."""
    silent_from: str | None = None
    """Text from the first occurrence of this marker on is delivered but not spoken: a tool call, say."""


class SessionSettings(msgspec.Struct, frozen=True, array_like=True):
    """What a session is opened with; everything else is said per reply."""

    system_prompt: str | None = None
    """None: the prompt the model was trained to speak with. Empty: none."""
    voice: str | None = None
    """None: the model's first."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one reply. Input counts the whole context, cached what of it had been computed for earlier replies."""

    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    """Images and camera frames."""
    cached_text_tokens: int = 0
    cached_audio_tokens: int = 0
    cached_image_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0
    """Codec tokens."""


class Capacity(msgspec.Struct, frozen=True, array_like=True):
    """How much a worker takes on."""

    num_lanes: int
    """Sessions at the same time."""
    num_pages: int
    page_size: int
    context_tokens: int
    """Longest conversation."""
    voices: tuple[str, ...]


class _Packet(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Tagged by class name."""


# ---- commands


class OpenSession(_Packet, frozen=True):
    session_id: str
    settings: SessionSettings = SessionSettings()


class OpenClip(_Packet, frozen=True):
    """Begin a clip in the turn's input. The first packet that names a `turn_id` begins that turn."""

    session_id: str
    turn_id: int
    start: ClipStart


class AppendPair(_Packet, frozen=True):
    session_id: str
    turn_id: int
    pair: FramePair


class AppendChunk(_Packet, frozen=True):
    session_id: str
    turn_id: int
    chunk: MediaChunk


class AppendText(_Packet, frozen=True):
    """Add text. Roles other than the user's rebuild or seed a history; they are turns that were over before."""

    session_id: str
    turn_id: int
    text: str
    role: Literal["user", "assistant", "system"] = "user"


class AppendImage(_Packet, frozen=True):
    """Add a picture: a JPEG, PNG or WebP file."""

    session_id: str
    turn_id: int
    image: bytes


class CommitTurn(_Packet, frozen=True):
    """The turn's input is complete; answer it. A clip still open is a fault (`clip_open`)."""

    session_id: str
    turn_id: int
    options: ReplyOptions = ReplyOptions()


class CancelTurn(_Packet, frozen=True):
    """Stop the turn.

    Before its commit its input is forgotten; after it the history keeps the input and what was heard of the reply.
    """

    session_id: str
    turn_id: int
    heard_samples: int | None = None
    """Samples of the reply that were played; None: not known (yet), keep what was made."""


class HoldTurn(_Packet, frozen=True):
    """Pause the reply, or let it go on: its listener does not take what is made."""

    session_id: str
    turn_id: int
    is_held: bool


class ReportPlayed(_Packet, frozen=True):
    """So much of the running reply has been played; until the first report it is taken to play without a pause."""

    session_id: str
    turn_id: int
    played_samples: int


class TruncateTurn(_Packet, frozen=True):
    """The user heard only so much of an ended turn's reply; forget the rest and whatever followed from it."""

    session_id: str
    turn_id: int
    heard_samples: int


class CloseSession(_Packet, frozen=True):
    session_id: str


# ---- replies


class Hello(_Packet, frozen=True):
    """First packet on the link, before anything is loaded."""

    protocol: int
    build: str
    model: str


class Loading(_Packet, frozen=True):
    """Start-up goes on; sent at least every few seconds."""

    stage: str
    progress: float
    """0 … 1 within the stage."""


class Ready(_Packet, frozen=True):
    """Loaded and warmed up: sessions may be opened. Known only now, as pages are cut from what loading left free."""

    capacity: Capacity


class WorkerStatus(_Packet, frozen=True):
    """Once a second, from a thread that is not the step loop: proof of progress."""

    step_count: int
    last_step_age_ms: int
    """Since the last completed step (or warm-up)."""
    has_work: bool
    num_sessions: int
    num_pages_free: int
    memory_bytes: int
    lateness_ms: int
    """How long the most neglected reply has been due: nothing of it heard yet, or its playout run dry."""


class SessionOpened(_Packet, frozen=True):
    session_id: str


class SessionFailed(_Packet, frozen=True):
    """The session does not exist (any more) in the worker."""

    session_id: str
    code: str
    message: str


class InputRefused(_Packet, frozen=True):
    """One piece of input could not be used (a broken image, say) and was left out; the turn goes on."""

    session_id: str
    turn_id: int
    code: str
    message: str


class TextDelta(_Packet, frozen=True):
    session_id: str
    turn_id: int
    text: str


class AudioDelta(_Packet, frozen=True):
    session_id: str
    turn_id: int
    start_sample: int
    """Within the reply, 24 000 a second; without gaps."""
    pcm: bytes
    """int16 little-endian mono."""


class TurnTruncated(_Packet, frozen=True):
    """What the history holds of the reply now."""

    session_id: str
    turn_id: int
    heard_samples: int
    """Effective: clamped to the reply, and never more than an earlier truncation left."""
    text: str


class TurnDone(_Packet, frozen=True):
    """Nothing more of this turn follows."""

    session_id: str
    turn_id: int
    reason: DoneReason
    usage: Usage
    code: str = ""
    """If `FAILED`."""
    message: str = ""


Command = (
    OpenSession
    | OpenClip
    | AppendPair
    | AppendChunk
    | AppendText
    | AppendImage
    | CommitTurn
    | CancelTurn
    | HoldTurn
    | ReportPlayed
    | TruncateTurn
    | CloseSession
)
Reply = (
    Hello
    | Loading
    | Ready
    | WorkerStatus
    | SessionOpened
    | SessionFailed
    | InputRefused
    | TextDelta
    | AudioDelta
    | TurnTruncated
    | TurnDone
)
Packet = Command | Reply
PacketT = TypeVar("PacketT")


def encode_packet(packet: Packet) -> bytes:
    """Return the packet's body, without the length that frames it.

    Raises:
        LinkError: longer than `MAX_PACKET_BYTES`; who builds packets must bound them before.
    """
    body = msgspec.msgpack.encode(packet)
    if len(body) > MAX_PACKET_BYTES:
        name = type(packet).__name__
        raise LinkError(f"{name} of {len(body)} bytes; the limit is {MAX_PACKET_BYTES}")
    return body


def decode_command(body: bytes | memoryview) -> Command:
    """Return the command.

    Raises:
        LinkError: no command of this protocol number.
    """
    return _decode(_COMMANDS, body)


def decode_reply(body: bytes | memoryview) -> Reply:
    """Return the reply.

    Raises:
        LinkError: no reply of this protocol number.
    """
    return _decode(_REPLIES, body)


def require_protocol(hello: Hello) -> None:
    """Check the first packet.

    Raises:
        LinkError: the worker speaks another protocol number.
    """
    if hello.protocol != PROTOCOL:
        raise LinkError(
            f"the worker (build {hello.build}) speaks packet protocol {hello.protocol}, "
            f"this gateway speaks {PROTOCOL}; install the same version on both sides"
        )


def _decode(decoder: msgspec.msgpack.Decoder[PacketT], body: bytes | memoryview) -> PacketT:
    try:
        return decoder.decode(body)
    # Beside its own errors the decoder lets these two of the interpreter through.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise LinkError(f"a packet of {len(body)} bytes could not be read: {fault}") from fault


_COMMANDS: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
