"""The `openai` Python package, `client.beta.realtime`: the API as it was before, still in many programs."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.clients import scripted
from tests.clients.material import GET_TIME, KEY, data_uri, speech, turn
from tests.clients.openai_sdk import RATE, Talk, client, talk, words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.house import House

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:openai")


def play(server: House, scene: Callable[[Talk], Awaitable[None]]) -> None:
    async def main() -> None:
        async with talk(server, is_beta=True) as talking:
            created = await talking.until("session.created")
            assert created.session.modalities == ["text", "audio"]
            await talking.until("conversation.created")
            await scene(talking)
            # Nothing is written in today's spelling to a program of yesterday.
            assert not [
                kind for kind in talking.kinds() if ".output_" in kind and "item" not in kind
            ]

    asyncio.run(main())


def test_a_spoken_turn_under_server_vad(server: House) -> None:
    async def scene(talking: Talk) -> None:
        session = await talking.configure(
            modalities=["text", "audio"],
            voice="alloy",
            input_audio_format="pcm16",
            input_audio_transcription={"model": "whisper-1"},
            turn_detection={"type": "server_vad", "silence_duration_ms": 400},
            temperature=0.8,
        )
        assert (session.voice, session.input_audio_format) == ("Ethan", "pcm16")
        await talking.say(turn(RATE))
        response = await talking.response()
        assert response.status == "completed"
        assert words(response) == scripted.HEARD.text
        [done] = talking.of("response.audio_transcript.done")
        assert done.transcript == scripted.HEARD.text
        assert response.usage.input_token_details.audio_tokens > 20
        codes = response.usage.output_token_details.audio_tokens
        assert len(talking.sound()) == 2 * 480 * codes > 0
        kind = "conversation.item.input_audio_transcription.completed"
        written = talking.of(kind) or [await talking.until(kind)]
        assert written[0].transcript == scripted.WRITTEN_DOWN.text

    play(server, scene)


def test_a_turn_committed_by_hand(server: House) -> None:
    async def scene(talking: Talk) -> None:
        # The package has no way to say null; programs send it themselves.
        await talking.connection.send(
            {"type": "session.update", "session": {"turn_detection": None}}
        )
        assert (await talking.until("session.updated")).session.turn_detection is None
        await talking.say(speech(RATE))
        await talking.connection.input_audio_buffer.commit()
        await talking.connection.response.create()
        assert words(await talking.response()) == scripted.HEARD.text

    play(server, scene)


def test_a_written_turn_answered_in_text_alone(server: House) -> None:
    async def scene(talking: Talk) -> None:
        await talking.write("Good morning.")
        await talking.connection.response.create(response={"modalities": ["text"]})
        assert words(await talking.response()) == scripted.OTHERWISE.text
        assert talking.sound() == b""
        [done] = talking.of("response.text.done")
        assert done.text == scripted.OTHERWISE.text

    play(server, scene)


def test_a_picture(server: House) -> None:
    async def scene(talking: Talk) -> None:
        await talking.create_message({"type": "input_image", "image_url": data_uri("PNG")})
        await talking.connection.response.create()
        assert words(await talking.response()) == scripted.SEEN.text

    play(server, scene)


def test_barging_in_leaves_what_was_heard(server: House) -> None:
    async def scene(talking: Talk) -> None:
        connection = talking.connection
        await talking.write("Please count.")
        await connection.response.create()
        while len(talking.sound()) < 2 * RATE:
            delta = await talking.until("response.audio.delta")
        await talking.say(turn(RATE))
        interrupted = await talking.response()
        assert interrupted.id == delta.response_id
        assert (interrupted.status, interrupted.status_details.reason) == (
            "cancelled",
            "turn_detected",
        )
        await connection.conversation.item.truncate(
            item_id=delta.item_id, content_index=0, audio_end_ms=1000
        )
        assert words(await talking.response()) == scripted.HEARD.text
        await connection.conversation.item.retrieve(item_id=delta.item_id)
        item = (await talking.until("conversation.item.retrieved")).item
        [part] = item.content
        assert 0 < len(part.transcript) < len(words(interrupted))
        assert scripted.COUNTED.text.startswith(part.transcript)

    play(server, scene)


def test_a_tool_is_called_and_its_answer_told(server: House) -> None:
    async def scene(talking: Talk) -> None:
        connection = talking.connection
        await talking.configure(tools=[GET_TIME], tool_choice="auto")
        await talking.say(turn(RATE))
        [call] = (await talking.response()).output
        assert (call.type, call.name) == ("function_call", scripted.TOOL)
        assert json.loads(call.arguments) == {"place": "Oslo"}
        [done] = talking.of("response.function_call_arguments.done")
        assert done.call_id == call.call_id
        await connection.conversation.item.create(
            item={"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}
        )
        await connection.response.create()
        assert words(await talking.response()) == scripted.ANSWERED.text

    play(server, scene)


def test_a_session_made_beforehand(server: House) -> None:
    async def scene() -> None:
        async with client(server) as program:
            made = await program.beta.realtime.sessions.create(
                model="gpt-4o-realtime-preview", instructions="Be brief.", voice="shimmer"
            )
        assert (made.instructions, made.voice) == ("Be brief.", "Chelsie")
        assert made.client_secret.value.startswith("ek_") and made.client_secret.value != KEY
        async with talk(server, made.client_secret.value, is_beta=True) as talking:
            assert (await talking.until("session.created")).session.instructions == "Be brief."

    asyncio.run(scene())
