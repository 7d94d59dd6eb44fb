"""A page without an SDK: the browser's own WebSocket, which can set no header, so that the key is a subprotocol.

The browser is a stock WebSocket library here, told to send what browsers send; a real one opens the demo page in
tests/demo.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.clients import scripted
from tests.clients.material import KEY, base64_pieces, turn

if TYPE_CHECKING:
    from tests.e2e.house import House

RATE = 24_000
LIMIT_S = 30
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"


def page(server: House, *subprotocols: str, query: str = "?model=qwen2.5-omni") -> connect:
    """As `new WebSocket(url, subprotocols)` in a page that the server's own host has served."""
    host = f"127.0.0.1:{server.port}"
    return connect(
        f"ws://{host}/v1/realtime{query}",
        subprotocols=list(subprotocols),  # type: ignore[arg-type]
        origin=f"http://{host}",  # type: ignore[arg-type]
        user_agent_header=BROWSER,
        compression="deflate",  # every browser offers it
    )


async def until(socket: ClientConnection, kind: str, heard: list[dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        while True:
            event = json.loads(await socket.recv())
            heard.append(event)
            if event["type"] == kind:
                return dict(event)


@pytest.mark.parametrize(
    ("version", "delta"),
    [
        ((), "response.output_audio.delta"),
        (("openai-beta.realtime-v1",), "response.audio.delta"),
    ],
)
def test_a_spoken_turn(server: House, version: tuple[str, ...], delta: str) -> None:
    async def scene() -> None:
        heard: list[dict[str, Any]] = []
        offered = ("realtime", f"openai-insecure-api-key.{KEY}", *version)
        async with page(server, *offered) as socket:
            assert socket.subprotocol == "realtime"
            assert not socket.protocol.extensions
            await until(socket, "session.created", heard)
            for piece in base64_pieces(turn(RATE), RATE):
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": piece}))
            response = (await until(socket, "response.done", heard))["response"]
        assert response["output"][0]["content"][0]["transcript"] == scripted.HEARD.text
        sound = b"".join(base64.b64decode(e["delta"]) for e in heard if e["type"] == delta)
        codes = response["usage"]["output_token_details"]["audio_tokens"]
        assert len(sound) == 2 * 480 * codes > 0

    asyncio.run(scene())


def test_a_secret_that_the_pages_server_fetched_opens_the_session(server: House) -> None:
    body = {"session": {"type": "realtime", "audio": {"output": {"voice": "Ethan"}}}}
    status, text, _ = server.http(
        "/v1/realtime/client_secrets",
        body,
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    assert status == 200
    secret = json.loads(text)["value"]

    async def scene() -> None:
        async with page(server, "realtime", f"openai-insecure-api-key.{secret}") as socket:
            created = await until(socket, "session.created", [])
            assert created["session"]["audio"]["output"]["voice"] == "Ethan"

    asyncio.run(scene())


@pytest.mark.parametrize(
    "offered", [("realtime",), ("realtime", "openai-insecure-api-key.sk-wrong")]
)
def test_without_the_key_it_is_told_so(server: House, offered: tuple[str, ...]) -> None:
    async def scene() -> None:
        async with page(server, *offered) as socket:
            error = await until(socket, "error", [])
            assert error["error"]["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 3000

    asyncio.run(scene())
