"""One example of every event: what the tests render and parse, and what `docs/protocol.md` shows.

`python -m tests.server.examples` writes them into the document anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from server.dialect import Dialect
from server.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    ConversationCreated,
    ErrorEvent,
    InputCleared,
    InputCommitted,
    InputTimeout,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    ItemTruncated,
    OutputAudioDelta,
    OutputAudioDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    OutputTranscriptDelta,
    OutputTranscriptDone,
    ResponseCreated,
    ResponseDone,
    ResponseView,
    ServerEvent,
    SessionCreated,
    SessionFinished,
    SessionUpdated,
    SpeechStarted,
    SpeechStopped,
    StatusDetails,
    TranscriptionCompleted,
    TranscriptionDelta,
    TranscriptionFailed,
    TranscriptionSessionUpdated,
    VideoCleared,
    VideoCommitted,
    VideoDropped,
)
from server.identity import Identity
from server.items import AssistantMessage, FunctionCall, InputAudio, OutputAudio, UserMessage
from server.render import Renderer
from server.settings import Settings, Tool, Voices
from streaming.packets import Usage

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
IDENTITY = Identity("sess_Yw3", "conv_Kd8", "qwen2.5-omni", 1_760_000_000)
VOICES = Voices(("Chelsie", "Ethan"))
SETTINGS = Settings.default(Dialect.GA, VOICES, "Be brief.")
USAGE = Usage(20, 50, 20, 10, 40, 14, 15, 25)

USER = UserMessage("item_U1", [InputAudio(pcm=bytes(8))])
BEGUN = AssistantMessage("item_A1", [], "in_progress")
SAID = AssistantMessage("item_A1", [OutputAudio("Hello there.")])
CUT = AssistantMessage("item_A1", [OutputAudio("Hello")], "incomplete")
CALL = FunctionCall("item_F1", "look_up", "call_C1", '{"city":"Oslo"}')
PART = ("resp_R1", "item_A1", 0, 0)

TOOL = Tool("look_up", "Weather of a city", {"type": "object", "properties": {}})

CLIENT_EXAMPLES: dict[str, dict[str, object]] = {
    "session.update": {
        "session": {
            "type": "realtime",
            "instructions": "Be brief.",
            "audio": {"output": {"voice": "Ethan"}, "input": {"transcription": {}}},
        }
    },
    "input_audio_buffer.append": {"audio": "AAABAAIA"},
    "input_audio_buffer.commit": {},
    "input_audio_buffer.clear": {},
    "input_image_buffer.append": {"image": "/9j/4AAQ", "timestamp_ms": 1500},
    "input_video_buffer.append": {"video": "GkXfow==", "format": "video/webm;codecs=vp8", "seq": 0},
    "input_video_buffer.clear": {},
    "conversation.item.create": {
        "item": {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "What do you see?"}],
        },
    },
    "conversation.item.retrieve": {"item_id": "item_U1"},
    "conversation.item.delete": {"item_id": "item_U1"},
    "conversation.item.truncate": {"item_id": "item_A1", "content_index": 0, "audio_end_ms": 1200},
    "response.create": {
        "response": {"output_modalities": ["text"], "metadata": {"client_event_id": "7"}}
    },
    "response.cancel": {"response_id": "resp_R1"},
    "output_audio_buffer.clear": {},
    "playback.ack": {"item_id": "item_A1", "audio_end_ms": 1040},
    "transcription_session.update": {"session": {"input_audio_transcription": {"language": "en"}}},
    "session.finish": {},
}
"""By type, without it."""

SERVER_EXAMPLES: tuple[ServerEvent, ...] = (
    SessionCreated(SETTINGS),
    ConversationCreated("conv_Kd8"),
    SessionUpdated(SETTINGS),
    TranscriptionSessionUpdated(SETTINGS),
    SpeechStarted(620, "item_U1"),
    SpeechStopped(2480, "item_U1"),
    InputCommitted(None, "item_U1"),
    VideoCommitted("item_U1", 5, 0, 620, 2480),
    ItemAdded(None, USER),
    ItemDone(None, USER),
    ResponseCreated(ResponseView("resp_R1", "in_progress", SETTINGS, "conv_Kd8")),
    OutputItemAdded("resp_R1", 0, BEGUN),
    ContentPartAdded(*PART, "audio"),
    OutputTranscriptDelta(*PART, "Hello "),
    OutputAudioDelta(*PART, bytes(6)),
    OutputAudioDone(*PART),
    OutputTranscriptDone(*PART, "Hello there."),
    OutputTextDelta(*PART, "Hello "),
    OutputTextDone(*PART, "Hello there."),
    ContentPartDone(*PART, "audio", "Hello there."),
    OutputItemDone("resp_R1", 0, SAID),
    ResponseDone(
        ResponseView(
            "resp_R1",
            "cancelled",
            SETTINGS,
            "conv_Kd8",
            StatusDetails("turn_detected"),
            (CUT,),
            {"client_event_id": "7"},
            USAGE,
        )
    ),
    ArgumentsDelta("resp_R1", "item_F1", 0, "call_C1", '{"city":'),
    ArgumentsDone("resp_R1", "item_F1", 0, "call_C1", "look_up", '{"city":"Oslo"}'),
    ItemRetrieved(USER, SETTINGS.input_format),
    ItemTruncated("item_A1", 0, 1200),
    ItemDeleted("item_U1"),
    TranscriptionDelta("item_U1", 0, "hi "),
    TranscriptionCompleted("item_U1", 0, "hi there", 1.86),
    TranscriptionFailed("item_U1", 0, "server_error", "The transcription failed."),
    InputCleared(),
    InputTimeout(30_000, 36_000, "item_U2"),
    VideoCleared(),
    VideoDropped(3, "rate"),
    SessionFinished(),
    ErrorEvent(
        "invalid_value", "Invalid value for 'audio': expected base64.", "audio", "evt_client_17"
    ),
)
ONLY_FLAT = (ConversationCreated, TranscriptionSessionUpdated)
"""Shown in the document as the beta dialect has them."""


def client_message(kind: str) -> str:
    """Return the example as a client would send it."""
    return json.dumps({"type": kind, **CLIENT_EXAMPLES[kind]}, separators=(",", ":"))


def server_message(event: ServerEvent, dialect: Dialect) -> str:
    """Return the example as the dialect has it, ids of events shortened."""
    (message,) = Renderer(dialect, IDENTITY).render(event)
    assert isinstance(message, str)
    return re.sub(r'"event_id":"event_\w+"', '"event_id":"event_…"', message)


def _wrap(message: str) -> str:
    """Break a long object after commas between members."""
    lines, line = [], ""
    for piece in re.split(r'(?<=[,{\[])(?=["{])', message):
        if line and len(line) + len(piece) > 112:
            lines.append(line)
            line = " "
        line += piece
    return "\n".join([*lines, line])


def _blocks() -> dict[str, str]:
    flat = dict.fromkeys(ONLY_FLAT, Dialect.BETA)
    server = [server_message(e, flat.get(type(e), Dialect.GA)) for e in SERVER_EXAMPLES]
    in_beta = [
        SessionCreated(SETTINGS),
        ItemAdded("item_U1", SAID),
        OutputAudioDelta(*PART, bytes(6)),
    ]
    return {
        "client": "\n".join(_wrap(client_message(kind)) for kind in CLIENT_EXAMPLES),
        "server": "\n".join(_wrap(message) for message in server),
        "beta": "\n".join(_wrap(server_message(event, Dialect.BETA)) for event in in_beta),
    }


def fill(document: str) -> str:
    """Return the document with the examples between its marks."""
    for name, block in _blocks().items():
        mark = f"<!-- examples: {name} -->"
        begin, _, rest = document.partition(f"{mark}\n")
        _, _, end = rest.partition("<!-- end -->")
        document = f"{begin}{mark}\n```json\n{block}\n```\n<!-- end -->{end}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
