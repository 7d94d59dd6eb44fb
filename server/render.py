"""Renderer: server events as the messages that a client's dialect expects.

An event's members are its fields, unless `_BODIES` says otherwise; its name is the GA's, unless the dialect is flat and
`FLAT_NAMES` has another. Sound, the bulk of what is sent, skips all that: two strings around its base64.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pybase64

from server import events
from server.dialect import Dialect
from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputImage,
    InputText,
    InputVideo,
    OutputAudio,
    OutputText,
    SystemMessage,
    UserMessage,
)
from server.session_object import (
    Members,
    flat_output_format,
    max_output_tokens,
    modalities,
    nested_format,
    session_object,
    temperature,
)
from streaming.media import INPUT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE
from streaming.packets import Usage
from streaming.pcm import INT16, Encoding, SoundWriter
from streaming.resample import Resampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.identity import Identity
    from server.items import Item, Part
    from server.settings import Delivery, NamedFormat

MAX_MESSAGE_BYTES = 512 * 1024
"""Clients close the connection above 1 MiB; half of it leaves them room."""
MAX_SOUND_BYTES = 192 * 1024
"""Of one delta; longer ones are split. Even, so that no sample is."""


class Renderer:
    """Writes the events of one connection.

    `dialect` may be changed between events, as the session corrects it.
    """

    def __init__(self, dialect: Dialect, identity: Identity) -> None:
        self.dialect = dialect
        self.identity = identity
        self._event_prefix = f"event_{secrets.token_hex(5)}"
        self._counter = itertools.count()
        self._sound_frame = _SoundFrame("", "", "")
        self._sound_key: tuple[object, ...] = ()

    def render(self, event: events.ServerEvent, delivery: Delivery = "base64") -> list[str | bytes]:
        """Return the messages of an event, each at most 512 KiB; none if the dialect has no such event."""
        if isinstance(event, events.OutputAudioDelta):
            return self._render_sound(event, delivery)
        if type(event) in (_ONLY_GA if self.dialect.is_flat else _ONLY_FLAT):
            return []
        head: Members = {"type": self._name(event), "event_id": self._next_event_id()}
        return [msgspec.json.encode(head | self._members(event)).decode()]

    def _render_sound(
        self, event: events.OutputAudioDelta, delivery: Delivery
    ) -> list[str | bytes]:
        pieces = [event.pcm]
        if len(event.pcm) > MAX_SOUND_BYTES:
            starts = range(0, len(event.pcm), MAX_SOUND_BYTES)
            pieces = [event.pcm[start : start + MAX_SOUND_BYTES] for start in starts]
        frame = self._frame(event)
        write = frame.binary if delivery == "binary" else frame.text
        return [write(self._next_event_id(), piece) for piece in pieces]

    def _frame(self, event: events.OutputAudioDelta) -> _SoundFrame:
        """What stands around the sound; the same for all deltas of a part."""
        key = (
            self.dialect,
            event.response_id,
            event.item_id,
            event.output_index,
            event.content_index,
        )
        if key != self._sound_key:
            self._sound_key, self._sound_frame = key, _sound_frame(self._name(event), event)
        return self._sound_frame

    def _name(self, event: events.ServerEvent) -> str:
        name = NAMES[type(event)]
        return FLAT_NAMES.get(name, name) if self.dialect.is_flat else name

    def _next_event_id(self) -> str:
        return f"{self._event_prefix}{next(self._counter):08x}"

    def _members(self, event: events.ServerEvent) -> Members:
        if (body := _BODIES.get(type(event))) is not None:
            return body(self, event)
        return {name: getattr(event, name) for name in _FIELDS[type(event)]}


# ---- names

NAMES: Mapping[type, str] = MappingProxyType(
    {
        events.ErrorEvent: "error",
        events.SessionCreated: "session.created",
        events.SessionUpdated: "session.updated",
        events.TranscriptionSessionUpdated: "transcription_session.updated",
        events.ConversationCreated: "conversation.created",
        events.SessionFinished: "session.finished",
        events.SpeechStarted: "input_audio_buffer.speech_started",
        events.SpeechStopped: "input_audio_buffer.speech_stopped",
        events.InputCommitted: "input_audio_buffer.committed",
        events.InputCleared: "input_audio_buffer.cleared",
        events.InputTimeout: "input_audio_buffer.timeout_triggered",
        events.VideoCommitted: "input_video_buffer.committed",
        events.VideoCleared: "input_video_buffer.cleared",
        events.VideoDropped: "input_video_buffer.dropped",
        events.ItemAdded: "conversation.item.added",
        events.ItemDone: "conversation.item.done",
        events.ItemRetrieved: "conversation.item.retrieved",
        events.ItemDeleted: "conversation.item.deleted",
        events.ItemTruncated: "conversation.item.truncated",
        events.TranscriptionDelta: "conversation.item.input_audio_transcription.delta",
        events.TranscriptionCompleted: "conversation.item.input_audio_transcription.completed",
        events.TranscriptionFailed: "conversation.item.input_audio_transcription.failed",
        events.ResponseCreated: "response.created",
        events.ResponseDone: "response.done",
        events.OutputItemAdded: "response.output_item.added",
        events.OutputItemDone: "response.output_item.done",
        events.ContentPartAdded: "response.content_part.added",
        events.ContentPartDone: "response.content_part.done",
        events.OutputAudioDelta: "response.output_audio.delta",
        events.OutputAudioDone: "response.output_audio.done",
        events.OutputTranscriptDelta: "response.output_audio_transcript.delta",
        events.OutputTranscriptDone: "response.output_audio_transcript.done",
        events.OutputTextDelta: "response.output_text.delta",
        events.OutputTextDone: "response.output_text.done",
        events.ArgumentsDelta: "response.function_call_arguments.delta",
        events.ArgumentsDone: "response.function_call_arguments.done",
    }
)
FLAT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "conversation.item.added": "conversation.item.created",
        "response.output_audio.delta": "response.audio.delta",
        "response.output_audio.done": "response.audio.done",
        "response.output_audio_transcript.delta": "response.audio_transcript.delta",
        "response.output_audio_transcript.done": "response.audio_transcript.done",
        "response.output_text.delta": "response.text.delta",
        "response.output_text.done": "response.text.done",
    }
)
_ONLY_GA = frozenset({events.ItemDone})
_ONLY_FLAT = frozenset({events.ConversationCreated})
_FIELDS: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in NAMES}
)


# ---- sound


@dataclasses.dataclass(frozen=True, slots=True)
class _SoundFrame:
    """JSON before the event's id, between it and the sound, and instead of that in a binary message."""

    head: str
    before_sound: str
    line_end: str

    def text(self, event_id: str, sound: bytes) -> str:
        return f'{self.head}{event_id}{self.before_sound}{pybase64.b64encode_as_string(sound)}"}}'

    def binary(self, event_id: str, sound: bytes) -> bytes:
        return f"{self.head}{event_id}{self.line_end}".encode() + sound


def _sound_frame(name: str, event: events.OutputAudioDelta) -> _SoundFrame:
    place: Members = {
        "response_id": event.response_id,
        "item_id": event.item_id,
        "output_index": event.output_index,
        "content_index": event.content_index,
    }
    members = msgspec.json.encode(place).decode()[1:-1]
    return _SoundFrame(
        head=f'{{"type":"{name}","event_id":"',
        before_sound=f'",{members},"delta":"',
        line_end=f'",{members}}}\n',
    )


def _echoed_sound(pcm: bytes, wanted: NamedFormat, most_bytes: int) -> str | None:
    """The user's sound in base64, as it is sent; None if that is longer than `most_bytes`."""
    sound = wanted.sound
    num_samples = len(pcm) // INT16.itemsize * sound.rate // INPUT_SAMPLE_RATE + 1
    if (num_samples * sound.bytes_per_sample + 2) // 3 * 4 > most_bytes:
        return None
    rate = sound.rate if sound.encoding is Encoding.PCM16 else OUTPUT_SAMPLE_RATE
    resampler = Resampler(INPUT_SAMPLE_RATE, rate)
    samples = np.concatenate((resampler.push(np.frombuffer(pcm, INT16)), resampler.flush()))
    if sound.encoding is Encoding.PCM16:
        return pybase64.b64encode_as_string(samples.tobytes())
    writer = SoundWriter(sound)
    return pybase64.b64encode_as_string(writer.push(samples.tobytes()) + writer.flush())


# ---- items


def item_object(item: Item, dialect: Dialect) -> Members:
    """Return an item without its media; `content` is always a list."""
    head: Members = {"id": item.id, "object": "realtime.item", "status": item.status}
    if isinstance(item, FunctionCall):
        call: Members = {"name": item.name, "call_id": item.call_id, "arguments": item.arguments}
        return head | {"type": "function_call"} | call
    if isinstance(item, FunctionCallOutput):
        return head | {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": item.output,
        }
    return head | {
        "type": "message",
        "role": _ROLES[type(item)],
        "content": [_part_object(part, dialect) for part in item.content],
    }


_ROLES: Mapping[type, str] = MappingProxyType(
    {UserMessage: "user", SystemMessage: "system", AssistantMessage: "assistant"}
)


def _part_object(part: Part, dialect: Dialect) -> Members:
    prefix = "" if dialect.is_flat else "output_"
    match part:
        case InputText(text):
            return {"type": "input_text", "text": text}
        case InputAudio(transcript=transcript):
            # Without the key, even if null, one client's process ends.
            return {"type": "input_audio", "transcript": transcript}
        case InputImage():
            return {"type": "input_image"}
        case InputVideo():
            return {"type": "input_video"}
        case OutputText(text):
            return {"type": f"{prefix}text", "text": text}
        case OutputAudio(transcript):
            return {"type": f"{prefix}audio", "transcript": transcript}


def _retrieved(renderer: Renderer, event: events.ItemRetrieved) -> Members:
    item = event.item
    shown = item_object(item, renderer.dialect)
    if not isinstance(item, UserMessage):
        return {"item": shown}
    parts = [_part_object(part, renderer.dialect) for part in item.content]
    # What the rest of the message takes; 200 bytes are more than what stands around the item.
    left = MAX_MESSAGE_BYTES - len(msgspec.json.encode(shown)) - 200
    for part, part_object in zip(item.content, parts, strict=True):
        if not isinstance(part, InputAudio) or not part.pcm:
            continue
        if (audio := _echoed_sound(part.pcm, event.input_format, left)) is not None:
            part_object["audio"] = audio
            left -= len(audio) + len('"audio":"",')
    return {"item": shown | {"content": parts}}


# ---- responses


def response_object(view: events.ResponseView, dialect: Dialect) -> Members:
    """Return a response as it stands."""
    settings = view.settings
    shown: Members = {
        "object": "realtime.response",
        "id": view.id,
        "status": view.status,
        "status_details": _status_details(view),
        "output": [item_object(item, dialect) for item in view.output],
        "conversation_id": view.conversation_id,
        "max_output_tokens": max_output_tokens(settings),
        "metadata": view.metadata,
        "usage": None if view.usage is None else _usage(view.usage, dialect),
    }
    if dialect.is_flat:
        return shown | {
            "modalities": modalities(settings, dialect),
            "voice": settings.voice,
            "output_audio_format": flat_output_format(settings.output_format, dialect),
            "temperature": temperature(settings),
        }
    output = {"format": nested_format(settings.output_format), "voice": settings.voice}
    return shown | {
        "output_modalities": modalities(settings, dialect),
        "audio": {"output": output},
    }


def _status_details(view: events.ResponseView) -> Members | None:
    details = view.status_details
    if details is None or view.status in ("in_progress", "completed"):
        return None
    if view.status != "failed":
        return {"type": view.status, "reason": details.reason}
    error = {
        "type": details.error_type,
        "code": details.error_code,
        "message": details.error_message,
    }
    return {"type": "failed", "error": error}


def _usage(usage: Usage, dialect: Dialect) -> Members:
    cached: Members = {
        "text_tokens": usage.cached_text_tokens,
        "audio_tokens": usage.cached_audio_tokens,
        "image_tokens": usage.cached_image_tokens,
    }
    num_cached = usage.cached_text_tokens + usage.cached_audio_tokens + usage.cached_image_tokens
    num_input = usage.input_text_tokens + usage.input_audio_tokens + usage.input_image_tokens
    num_output = usage.output_text_tokens + usage.output_audio_tokens
    of_input: Members = {
        "text_tokens": usage.input_text_tokens,
        "audio_tokens": usage.input_audio_tokens,
        "image_tokens": usage.input_image_tokens,
        "cached_tokens": num_cached,
        "cached_tokens_details": cached,
    }
    of_output: Members = {
        "text_tokens": usage.output_text_tokens,
        "audio_tokens": usage.output_audio_tokens,
    }
    shown: Members = {
        "total_tokens": num_input + num_output,
        "input_tokens": num_input,
        "output_tokens": num_output,
        "input_token_details": of_input,
        "output_token_details": of_output,
    }
    if dialect is Dialect.DASHSCOPE:
        shown |= {"input_tokens_details": of_input, "output_tokens_details": of_output}
    return shown


# ---- bodies that are not simply an event's fields


def _error(_: Renderer, event: events.ErrorEvent) -> Members:
    return {
        "error": {
            "type": event.type,
            "code": event.code,
            "message": event.message,
            "param": event.param,
            "event_id": event.event_id,
        }
    }


def _session(
    renderer: Renderer,
    event: events.SessionCreated | events.SessionUpdated | events.TranscriptionSessionUpdated,
) -> Members:
    return {"session": session_object(event.settings, renderer.identity, renderer.dialect)}


def _conversation(_: Renderer, event: events.ConversationCreated) -> Members:
    return {"conversation": {"id": event.conversation_id, "object": "realtime.conversation"}}


def _placed_item(renderer: Renderer, event: events.ItemAdded | events.ItemDone) -> Members:
    return {
        "previous_item_id": event.previous_item_id,
        "item": item_object(event.item, renderer.dialect),
    }


def _output_item(
    renderer: Renderer, event: events.OutputItemAdded | events.OutputItemDone
) -> Members:
    return {
        "response_id": event.response_id,
        "output_index": event.output_index,
        "item": item_object(event.item, renderer.dialect),
    }


def _video_committed(_: Renderer, event: events.VideoCommitted) -> Members:
    return {
        "item_id": event.item_id,
        "frames": event.num_frames,
        "dropped_frames": event.num_dropped_frames,
        "start_ms": event.start_ms,
        "end_ms": event.end_ms,
    }


def _video_dropped(_: Renderer, event: events.VideoDropped) -> Members:
    return {"frames": event.num_frames, "reason": event.reason}


def _transcription_delta(_: Renderer, event: events.TranscriptionDelta) -> Members:
    place: Members = {"item_id": event.item_id, "content_index": event.content_index}
    return place | {"delta": event.delta, "logprobs": None}


def _transcription_completed(_: Renderer, event: events.TranscriptionCompleted) -> Members:
    return {
        "item_id": event.item_id,
        "content_index": event.content_index,
        "transcript": event.transcript,
        "logprobs": None,
        "usage": {"type": "duration", "seconds": event.seconds},
    }


def _transcription_failed(_: Renderer, event: events.TranscriptionFailed) -> Members:
    error = {"type": "server_error", "code": event.code, "message": event.message, "param": None}
    return {"item_id": event.item_id, "content_index": event.content_index, "error": error}


def _content_part(_: Renderer, event: events.ContentPartAdded | events.ContentPartDone) -> Members:
    said = "transcript" if event.part_type == "audio" else "text"
    return {
        "response_id": event.response_id,
        "item_id": event.item_id,
        "output_index": event.output_index,
        "content_index": event.content_index,
        "part": {"type": event.part_type, said: event.text},
    }


def _response_created(renderer: Renderer, event: events.ResponseCreated) -> Members:
    response = dataclasses.replace(event.response, usage=None)
    return {"response": response_object(response, renderer.dialect)}


def _response_done(renderer: Renderer, event: events.ResponseDone) -> Members:
    response = dataclasses.replace(event.response, usage=event.response.usage or Usage())
    return {"response": response_object(response, renderer.dialect)}


_BODIES: Mapping[type, Callable[[Renderer, Any], Members]] = MappingProxyType(  # its key's
    {
        events.ErrorEvent: _error,
        events.SessionCreated: _session,
        events.SessionUpdated: _session,
        events.TranscriptionSessionUpdated: _session,
        events.ConversationCreated: _conversation,
        events.ItemAdded: _placed_item,
        events.ItemDone: _placed_item,
        events.ItemRetrieved: _retrieved,
        events.OutputItemAdded: _output_item,
        events.OutputItemDone: _output_item,
        events.VideoCommitted: _video_committed,
        events.VideoDropped: _video_dropped,
        events.TranscriptionDelta: _transcription_delta,
        events.TranscriptionCompleted: _transcription_completed,
        events.TranscriptionFailed: _transcription_failed,
        events.ContentPartAdded: _content_part,
        events.ContentPartDone: _content_part,
        events.ResponseCreated: _response_created,
        events.ResponseDone: _response_done,
    }
)
