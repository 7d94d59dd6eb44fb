"""A program that uses the `openai` Python package, whichever of its two realtime clients."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai

from tests.clients.material import KEY, base64_pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.house import House

RATE = 24_000
LIMIT_S = 30


class Talk:
    """One connection; events are the package's own parsed objects, which differ by client.

    Args:
        is_beta: the connection is `client.beta.realtime`'s.
    """

    def __init__(self, connection: Any, *, is_beta: bool = False) -> None:
        self.connection = connection
        self.is_beta = is_beta
        self.heard: list[Any] = []

    def prefix(self, kind: str) -> str:
        """Of the events of a kind of output."""
        return f"response.{kind}." if self.is_beta else f"response.output_{kind}."

    async def until(self, kind: str) -> Any:
        async with asyncio.timeout(LIMIT_S):
            while True:
                event = await self.connection.recv()
                self.heard.append(event)
                assert event.type != "error" or kind == "error", event
                if event.type == kind:
                    return event

    async def response(self) -> Any:
        """The next that ends."""
        return (await self.until("response.done")).response

    async def configure(self, **session: Any) -> Any:
        if not self.is_beta:
            session["type"] = "realtime"
        await self.connection.session.update(session=session)
        return (await self.until("session.updated")).session

    async def write(self, text: str) -> None:
        await self.create_message({"type": "input_text", "text": text})

    async def create_message(self, *content: Any) -> None:
        item = {"type": "message", "role": "user", "content": list(content)}
        await self.connection.conversation.item.create(item=item)

    async def say(self, pcm: bytes) -> None:
        for piece in base64_pieces(pcm, RATE):
            await self.connection.input_audio_buffer.append(audio=piece)

    def kinds(self) -> list[str]:
        return [event.type for event in self.heard]

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.heard if event.type == kind]

    def sound(self) -> bytes:
        deltas = self.of(self.prefix("audio") + "delta")
        return b"".join(base64.b64decode(event.delta) for event in deltas)


def client(server: House, key: str = KEY) -> openai.AsyncOpenAI:
    place = f"127.0.0.1:{server.port}/v1"
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=f"http://{place}",
        websocket_base_url=f"ws://{place}",  # else the beta client insists on TLS
        max_retries=0,
    )


@asynccontextmanager
async def talk(
    server: House, key: str = KEY, *, is_beta: bool = False, **options: Any
) -> AsyncIterator[Talk]:
    async with client(server, key) as program:
        realtime: Any = program.beta.realtime if is_beta else program.realtime
        async with realtime.connect(model="qwen2.5-omni", **options) as connection:
            yield Talk(connection, is_beta=is_beta)


def words(response: Any) -> str:
    """The one thing that was said."""
    [item] = response.output
    [part] = item.content
    return str(part.transcript or part.text or "")
