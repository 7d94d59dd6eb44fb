"""The `dashscope` Python package, `OmniRealtimeConversation`: what programs for Qwen-Omni-Realtime are written with."""

from __future__ import annotations

import base64
import contextlib
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients import scripted
from tests.clients.material import KEY, base64_pieces, picture, speech, turn

pytest.importorskip(
    "dashscope", reason="pip install --constraint constraints.txt --editable '.[clients]'"
)

from dashscope.audio.qwen_omni import (
    AudioFormat,
    MultiModality,
    OmniRealtimeCallback,
    OmniRealtimeConversation,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.house import House

RATE = 16_000
LIMIT_S = 30
SPOKEN = [MultiModality.TEXT, MultiModality.AUDIO]

Event = dict[str, Any]


class Ear(OmniRealtimeCallback):
    """A program's callback: it queues what comes."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Event] = queue.Queue()
        self.heard: list[Event] = []

    def on_event(self, message: Any) -> None:
        self.arrived.put(message)

    def on_close(self, close_status_code: int, close_msg: str) -> None:
        self.arrived.put({"type": "closed", "code": close_status_code, "reason": close_msg})

    def until(self, kind: str) -> Event:
        while True:
            event = self.arrived.get(timeout=LIMIT_S)
            self.heard.append(event)
            assert event["type"] != "error" or kind == "error", event
            if event["type"] == kind:
                return event

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.heard if event["type"] == kind]

    def sound(self) -> bytes:
        return b"".join(base64.b64decode(e["delta"]) for e in self.of("response.audio.delta"))


def dial(server: House, ear: Ear, key: str = KEY) -> OmniRealtimeConversation:
    return OmniRealtimeConversation(
        model="qwen-omni-turbo-realtime",
        callback=ear,
        url=f"ws://127.0.0.1:{server.port}/api-ws/v1/realtime",
        api_key=key,
    )


@contextmanager
def call(server: House) -> Iterator[tuple[OmniRealtimeConversation, Ear]]:
    ear = Ear()
    conversation = dial(server, ear)
    conversation.connect()
    try:
        yield conversation, ear
    finally:
        conversation.close()  # its thread notices within ten seconds; nobody waits for it


def test_speech_and_camera_under_server_vad(server: House) -> None:
    with call(server) as (conversation, ear):
        conversation.update_session(
            output_modalities=SPOKEN,
            voice="Cherry",
            input_audio_format=AudioFormat.PCM_16000HZ_MONO_16BIT,
            output_audio_format=AudioFormat.PCM_24000HZ_MONO_16BIT,
            enable_input_audio_transcription=True,
            input_audio_transcription_model="gummy-realtime-v1",
            enable_turn_detection=True,
            turn_detection_type="server_vad",
        )
        session = ear.until("session.updated")["session"]
        assert (session["voice"], session["output_audio_format"]) == ("Chelsie", "pcm24")
        assert session["turn_detection"]["silence_duration_ms"] == 800
        frame = base64.b64encode(picture()).decode()
        for i, piece in enumerate(base64_pieces(turn(RATE), RATE)):
            conversation.append_audio(piece)
            if i % 5 == 0:  # twice a second
                conversation.append_video(frame)
        response = ear.until("response.done")["response"]
        assert response["status"] == "completed"
        [item] = response["output"]
        assert item["content"] == [{"type": "audio", "transcript": scripted.BOTH.text}]
        usage = response["usage"]
        assert usage["input_tokens_details"]["image_tokens"] > 0
        assert usage["input_tokens_details"]["audio_tokens"] > 20
        assert usage["input_tokens_details"] == usage["input_token_details"]
        assert len(ear.sound()) == 2 * 480 * usage["output_tokens_details"]["audio_tokens"] > 0
        kinds = [event["type"] for event in ear.heard]
        assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.created")
        assert conversation.get_session_id() == ear.of("session.created")[0]["session"]["id"]
        assert conversation.get_last_response_id() == response["id"]
        kind = "conversation.item.input_audio_transcription.completed"
        written = ear.of(kind) or [ear.until(kind)]
        assert written[0]["transcript"] == scripted.WRITTEN_DOWN.text
        conversation.end_session(LIMIT_S)  # waits for session.finished, raises on an error
        ear.until("session.finished")


def test_a_turn_committed_by_hand(server: House) -> None:
    with call(server) as (conversation, ear):
        conversation.update_session(SPOKEN, enable_turn_detection=False)
        assert ear.until("session.updated")["session"]["turn_detection"] is None
        for piece in base64_pieces(speech(RATE), RATE):
            conversation.append_audio(piece)
        conversation.append_video(base64.b64encode(picture()).decode())
        conversation.commit()
        conversation.create_response(output_modalities=[MultiModality.TEXT])
        response = ear.until("response.done")["response"]
        [item] = response["output"]
        assert item["content"][0]["text"] in (scripted.BOTH.text, scripted.SEEN.text)
        assert response["usage"]["input_tokens_details"]["image_tokens"] > 0
        assert ear.sound() == b""


def test_a_reply_cancelled_and_one_finished_at_the_end(server: House) -> None:
    with call(server) as (conversation, ear):
        conversation.update_session(SPOKEN, enable_turn_detection=False)
        write(conversation, "Please count.")
        ear.until("response.audio.delta")
        conversation.cancel_response()
        assert ear.until("response.done")["response"]["status"] == "cancelled"
        write(conversation, "Good morning.")
        ear.until("response.created")
        conversation.end_session(LIMIT_S)
        done = ear.until("response.done")["response"]
        assert done["status"] == "completed"
        assert done["output"][0]["content"][0]["transcript"] == scripted.OTHERWISE.text
        ear.until("session.finished")


def write(conversation: OmniRealtimeConversation, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    conversation.create_item({"type": "message", "role": "user", "content": content})
    conversation.create_response()


def test_a_wrong_key_is_told_in_an_event(server: House) -> None:
    ear = Ear()
    conversation = dial(server, ear, "sk-wrong")
    # The package looks every 100 ms whether it is connected, and by then it is no more.
    with contextlib.suppress(TimeoutError):
        conversation.connect()
    assert ear.until("error")["error"]["code"] == "invalid_api_key"
    assert ear.until("closed")["code"] == 3000
    conversation.close()
