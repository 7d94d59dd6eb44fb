"""What has come on a socket is taken apart in small pieces, in order, and no more is read meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from server.protocols import SLICE_BYTES, Patience, protocol_classes
from tests.e2e.wire import CLOSE, HANDSHAKE, PONG, TEXT, frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Pipe(asyncio.Transport):
    """A transport that notes whether its reader wants more."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reading_on = True
        self.is_over = False
        self.written: list[bytes] = []

    def pause_reading(self) -> None:
        self.is_reading_on = False

    def resume_reading(self) -> None:
        self.is_reading_on = True

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    abort = close


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110  # many things, none of which tells
        await asyncio.sleep(0)


def play(
    act: Callable[[Any, Pipe, list[str]], Awaitable[None]], may_take: asyncio.Event | None = None
) -> list[str]:
    """Upgrade a socket, let `act` feed it; return the messages that the application took."""
    taken: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            taken.append(message["text"])
            if may_take is not None:
                await may_take.wait()

    async def run() -> None:
        config = uvicorn.Config(app, ws_per_message_deflate=False, log_config=None, lifespan="off")
        config.load()
        protocol = protocol_classes(Patience(1, 1))[1](config, ServerState(), {})  # type: ignore[no-untyped-call,unused-ignore]
        pipe = Pipe()
        protocol.connection_made(pipe)
        protocol.data_received(HANDSHAKE.format(path="/", port=1, more="").encode())
        async with asyncio.timeout(5):
            await until(lambda: pipe.written)
            await act(protocol, pipe, taken)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    asyncio.run(run())
    return taken


def test_one_read_of_many_messages_is_taken_apart_piece_by_piece_in_order() -> None:
    said = [f"message {n}" for n in range(3000)]
    sent = b"".join(frame(TEXT, text.encode()) for text in said)
    most = SLICE_BYTES // len(frame(TEXT, b"message 0")) + 1

    async def act(protocol: Any, pipe: Pipe, taken: list[str]) -> None:
        protocol.data_received(sent[:50_000])
        assert not pipe.is_reading_on
        protocol.data_received(sent[50_000:])
        while len(taken) < len(said):
            assert protocol.queue.qsize() <= most
            assert not pipe.is_reading_on
            await asyncio.sleep(0)
        await until(lambda: pipe.is_reading_on)

    assert play(act) == said


def test_what_is_no_message_gives_way_too() -> None:
    pongs = frame(PONG) * 20_000

    async def act(protocol: Any, pipe: Pipe, taken: list[str]) -> None:
        num_turns = 0
        protocol.data_received(pongs + frame(TEXT, b"at last"))
        while not taken:
            assert not pipe.is_reading_on
            await asyncio.sleep(0)
            num_turns += 1
        assert num_turns >= len(pongs) // SLICE_BYTES

    assert play(act) == ["at last"]


def test_a_long_message_is_whole() -> None:
    text = "x" * 300_001

    async def act(protocol: Any, pipe: Pipe, taken: list[str]) -> None:
        sent = frame(TEXT, text.encode()) + frame(TEXT, b"short")
        for start in range(0, len(sent), 70_001):
            await until(lambda: pipe.is_reading_on)
            protocol.data_received(sent[start : start + 70_001])
        await until(lambda: len(taken) == 2)

    assert play(act) == [text, "short"]


def test_a_goodbye_behind_what_nobody_takes_any_more_is_heard() -> None:
    may_take = asyncio.Event()

    async def act(protocol: Any, pipe: Pipe, taken: list[str]) -> None:
        protocol.data_received(frame(TEXT, b"x" * 100) * 200)
        await until(lambda: taken)
        await protocol.send({"type": "websocket.close", "code": 1000})
        protocol.data_received(frame(CLOSE, b"\x03\xe8"))
        await until(lambda: pipe.is_over)
        may_take.set()

    play(act, may_take)
