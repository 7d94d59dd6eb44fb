"""Clients that others wrote, unmodified."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

from openai import AsyncOpenAI

if TYPE_CHECKING:
    from tests.e2e.house import House


def sdk(house: House) -> AsyncOpenAI:
    base = f"127.0.0.1:{house.port}/v1"
    return AsyncOpenAI(
        api_key="unused", base_url=f"http://{base}", websocket_base_url=f"ws://{base}"
    )


def test_the_openai_sdk_holds_a_turn(house: House) -> None:
    async def scene() -> None:
        sound, text = bytearray(), ""
        async with sdk(house) as client, client.realtime.connect(model="gpt") as connection:
            await connection.session.update(
                session={
                    "type": "realtime",
                    "instructions": "Be kind.",
                    "output_modalities": ["audio"],
                }
            )
            content = [{"type": "input_text", "text": "Hello"}]
            item = {"type": "message", "role": "user", "content": content}
            await connection.conversation.item.create(item=item)  # type: ignore[arg-type]
            await connection.response.create()
            async with asyncio.timeout(20):
                async for event in connection:
                    if event.type == "response.output_audio.delta":
                        sound += base64.b64decode(event.delta)
                    elif event.type == "response.output_audio_transcript.done":
                        text = event.transcript
                    elif event.type == "session.created":
                        assert event.session.type == "realtime"
                    elif event.type == "response.done":
                        assert event.response.status == "completed"
                        assert event.response.usage is not None
                        break
        assert text == "Good day." and len(sound) == 2 * 24_000

    asyncio.run(scene())


def test_the_openai_sdk_asks_for_a_client_secret(house: House) -> None:
    async def scene() -> None:
        async with sdk(house) as client:
            secret = await client.realtime.client_secrets.create(session={"type": "realtime"})
        assert secret.value.startswith("ek_")

    asyncio.run(scene())
