"""The `openai` Python package, `client.realtime`: today's OpenAI Realtime API."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import openai
import pytest

from streaming.pcm import Encoding, SoundFormat, SoundWriter
from tests.clients import scripted
from tests.clients.material import GET_TIME, KEY, data_uri, speech, turn
from tests.clients.openai_sdk import Talk, client, talk, words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.house import House

RATE = 24_000
COUNT = "Please count."


def play(server: House, scene: Callable[[Talk], Awaitable[None]]) -> None:
    async def main() -> None:
        async with talk(server) as talking:
            created = await talking.until("session.created")
            assert created.session.type == "realtime"
            assert created.session.audio.output.voice == "Chelsie"
            await scene(talking)

    asyncio.run(main())


def test_a_spoken_turn_under_server_vad(server: House) -> None:
    async def scene(talking: Talk) -> None:
        await talking.configure(audio={"input": {"transcription": {"model": "whisper-1"}}})
        await talking.say(turn(RATE))
        response = await talking.response()
        assert response.status == "completed"
        assert words(response) == scripted.HEARD.text
        kinds = talking.kinds()
        order = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.done",
        ]
        assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
        said = "".join(
            e.delta for e in talking.heard if e.type == "response.output_audio_transcript.delta"
        )
        assert said == scripted.HEARD.text
        usage = response.usage
        # A code is 480 samples of 24 kHz.
        assert len(talking.sound()) == 2 * 480 * usage.output_token_details.audio_tokens > 0
        kind = "conversation.item.input_audio_transcription.completed"
        done = next((e for e in talking.heard if e.type == kind), None) or await talking.until(kind)
        assert done.transcript == scripted.WRITTEN_DOWN.text

    play(server, scene)


def test_a_turn_committed_by_hand(server: House) -> None:
    async def scene(talking: Talk) -> None:
        session = await talking.configure(audio={"input": {"turn_detection": None}})
        assert session.audio.input.turn_detection is None
        connection = talking.connection
        for _ in range(2):
            await talking.say(speech(RATE))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            assert words(await talking.response()) == scripted.HEARD.text
        assert "input_audio_buffer.speech_started" not in talking.kinds()

    play(server, scene)


def test_a_turn_in_g711(server: House) -> None:
    async def scene(talking: Talk) -> None:
        form = {"type": "audio/pcmu"}
        await talking.configure(
            audio={"input": {"format": form, "turn_detection": None}, "output": {"format": form}}
        )
        writer = SoundWriter(SoundFormat(Encoding.ULAW, 8000))
        spoken = writer.push(speech(RATE)) + writer.flush()
        await talking.connection.input_audio_buffer.append(audio=base64.b64encode(spoken).decode())
        await talking.connection.input_audio_buffer.commit()
        await talking.connection.response.create()
        response = await talking.response()
        assert words(response) == scripted.HEARD.text
        usage = response.usage
        assert abs(len(talking.sound()) - 160 * usage.output_token_details.audio_tokens) <= 160

    play(server, scene)


def test_a_written_turn_answered_in_text_alone(server: House) -> None:
    async def scene(talking: Talk) -> None:
        session = await talking.configure(output_modalities=["text"])
        assert session.output_modalities == ["text"]
        await talking.write("Good morning.")
        await talking.connection.response.create()
        response = await talking.response()
        assert words(response) == scripted.OTHERWISE.text
        assert talking.sound() == b""
        done = next(e for e in talking.heard if e.type == "response.output_text.done")
        assert done.text == scripted.OTHERWISE.text

    play(server, scene)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture(server: House, kind: str) -> None:
    async def scene(talking: Talk) -> None:
        await talking.create_message(
            {"type": "input_text", "text": "Look at this."},
            {"type": "input_image", "image_url": data_uri(kind)},
        )
        await talking.connection.response.create()
        response = await talking.response()
        assert words(response) == scripted.SEEN.text
        assert response.usage.input_token_details.image_tokens == (168 // 28) * (224 // 28)

    play(server, scene)


def test_barging_in_leaves_what_was_heard(server: House) -> None:
    async def scene(talking: Talk) -> None:
        connection = talking.connection
        await talking.write(COUNT)
        await connection.response.create()
        while len(talking.sound()) < 2 * RATE:
            delta = await talking.until("response.output_audio.delta")
        await talking.say(turn(RATE))
        interrupted = await talking.response()
        assert interrupted.id == delta.response_id
        assert interrupted.status == "cancelled"
        assert interrupted.status_details.reason == "turn_detected"
        answer = asyncio.create_task(talking.response())
        await connection.conversation.item.truncate(
            item_id=delta.item_id, content_index=0, audio_end_ms=1000
        )
        assert words(await answer) == scripted.HEARD.text  # what was said meanwhile
        late = [e for e in talking.heard if getattr(e, "response_id", "") == interrupted.id]
        position = talking.heard.index(late[-1])
        assert position < talking.kinds().index("response.done")
        [truncated] = talking.of("conversation.item.truncated")
        assert truncated.audio_end_ms == 1000
        await connection.conversation.item.retrieve(item_id=delta.item_id)
        item = (await talking.until("conversation.item.retrieved")).item
        heard = item.content[0].transcript
        assert item.status == "incomplete"
        assert 0 < len(heard) < len(words(interrupted))
        assert scripted.COUNTED.text.startswith(heard)
        # 20 ms a number is far faster than people speak; the estimate, which does not know that, is the lower.
        assert len(heard.split()) <= 50

    play(server, scene)


def test_a_reply_that_is_cancelled(server: House) -> None:
    async def scene(talking: Talk) -> None:
        await talking.write(COUNT)
        await talking.connection.response.create()
        await talking.until("response.output_audio.delta")
        await talking.connection.response.cancel()
        response = await talking.response()
        assert response.status == "cancelled"
        assert response.status_details.reason == "client_cancelled"
        await talking.connection.response.cancel(event_id="again")
        error = (await talking.until("error")).error
        assert (error.code, error.event_id) == ("response_cancel_not_active", "again")
        await talking.write("Good morning.")
        await talking.connection.response.create()
        assert words(await talking.response()) == scripted.OTHERWISE.text

    play(server, scene)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_tool_is_called_and_its_answer_told(server: House, speaks: bool) -> None:
    async def scene(talking: Talk) -> None:
        connection = talking.connection
        modality = "audio" if speaks else "text"
        await talking.configure(tools=[GET_TIME], output_modalities=[modality])
        if speaks:
            await talking.say(turn(RATE))
        else:
            await talking.write("What time is it?")
            await connection.response.create()
        response = await talking.response()
        [call] = response.output
        assert call.type == "function_call" and call.status == "completed"
        assert (call.name, call.arguments) == (scripted.TOOL, scripted.ARGUMENTS)
        assert talking.sound() == b""
        kinds = talking.kinds()
        added = next(e for e in talking.heard if e.type == "response.output_item.added")
        assert (added.item.name, added.item.call_id) == (call.name, call.call_id)
        done = next(e for e in talking.heard if e.type == "response.function_call_arguments.done")
        assert (done.call_id, done.arguments) == (call.call_id, call.arguments)
        assert "response.function_call_arguments.delta" in kinds
        await connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": call.call_id or "", "output": "12:00"}
        )
        await connection.response.create()
        assert words(await talking.response()) == scripted.ANSWERED.text
        assert bool(talking.sound()) == speaks

    play(server, scene)


def test_a_response_beside_the_conversation(server: House) -> None:
    async def scene(talking: Talk) -> None:
        connection = talking.connection
        await talking.write(COUNT)
        await connection.response.create()
        first = await talking.until("response.created")
        await connection.response.create(
            response={
                "conversation": "none",
                "output_modalities": ["text"],
                "metadata": {"purpose": "caption"},
                "instructions": "Describe the picture.",
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": data_uri()}],
                    }
                ],
            }
        )
        beside = await talking.until("response.created")
        assert beside.response.metadata == {"purpose": "caption"}
        assert beside.response.conversation_id is None
        done = await talking.response()
        while done.id != beside.response.id:
            done = await talking.response()
        assert words(done) == scripted.SEEN.text
        assert done.metadata == {"purpose": "caption"}
        if "response.done" in talking.kinds()[:-1]:
            return
        await connection.response.cancel(response_id=first.response.id)
        assert (await talking.response()).status == "cancelled"
        added = [e.item.id for e in talking.heard if e.type == "conversation.item.added"]
        assert len(added) == 2  # nothing of it is in the conversation

    play(server, scene)


def test_an_ephemeral_secret_opens_a_session_set_up_beforehand(server: House) -> None:
    async def scene() -> None:
        async with client(server) as program:
            secret = await program.realtime.client_secrets.create(
                session={"type": "realtime", "instructions": "Be brief.", "tools": [GET_TIME]},  # type: ignore[typeddict-item]
                expires_after={"anchor": "created_at", "seconds": 60},
            )
        assert secret.value.startswith("ek_")
        async with talk(server, secret.value) as talking:
            session = (await talking.until("session.created")).session
            assert session.instructions == "Be brief."
            assert session.tools[0].name == "get_time"
            await talking.write("What time is it?")
            await talking.connection.response.create()
            [call] = (await talking.response()).output or []
            assert call.type == "function_call"

    asyncio.run(scene())


def test_a_wrong_key_is_told_in_an_event(server: House) -> None:
    from websockets.exceptions import ConnectionClosed

    async def scene() -> None:
        async with talk(server, "sk-wrong") as talking:
            assert (await talking.until("error")).error.code == "invalid_api_key"
            with pytest.raises(ConnectionClosed) as closed:
                await talking.connection.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 3000

    asyncio.run(scene())


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning:openai")  # of websockets, to it
def test_the_blocking_client(server: House) -> None:
    program = openai.OpenAI(
        api_key=KEY, websocket_base_url=f"ws://127.0.0.1:{server.port}/v1", max_retries=0
    )
    with program, program.realtime.connect(model="qwen2.5-omni") as connection:
        connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Good morning."}],
            }
        )
        connection.response.create()
        for event in connection:
            if event.type == "response.done":
                assert words(event.response) == scripted.OTHERWISE.text
                break
