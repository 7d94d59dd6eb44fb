"""uvicorn's two protocol classes with the limits they lack: on headers that never end, on peers that never read, and on
how much of what has come is taken apart at once.

    connection ─▶ HeaderLimit (HTTP/1.1) ──upgrade──▶ ImpatientWebSocket

Both end a connection by aborting it: a graceful close waits for the peer to take what is unsent, which is what such a
peer does not do.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    import asyncio
    from asyncio.transports import BaseTransport, Transport

NOT_SENT_BYTES = 128 * 1024
"""What the kernel takes beyond what the network does. More would be sound that an interruption cannot call back."""
_TCP_NOTSENT_LOWAT = 25
MAX_HEADER_BYTES = 64 * 1024
"""The parser itself has no limit."""
SLICE_BYTES = 4096
"""Taken apart at once: a read may bring a quarter of a megabyte, and that many small frames keep the loop for long."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    header_limit_s: float
    close_limit_s: float


def protocol_classes(
    patience: Patience,
) -> tuple[type[HttpToolsProtocol], type[WebSocketsSansIOProtocol]]:
    """The classes for uvicorn's `http` and `ws`, which it makes itself and so cannot be given arguments."""

    class HeaderLimit(HttpToolsProtocol):
        _header_timer: asyncio.TimerHandle | None = None
        _num_header_bytes = 0

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as in the base class
            super().connection_made(transport)
            self._arm()

        def on_headers_complete(self) -> None:
            self._disarm()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._disarm()  # from here on uvicorn's own keep-alive timer waits for the next request

        def data_received(self, data: bytes) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            if is_idle and self._header_timer is None:
                self._arm()
            if self._header_timer is not None:
                self._num_header_bytes += len(data)
                if self._num_header_bytes > MAX_HEADER_BYTES:
                    self._give_up()
                    return
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _arm(self) -> None:
            self._header_timer = self.loop.call_later(patience.header_limit_s, self._give_up)

        def _disarm(self) -> None:
            self._num_header_bytes = 0
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _give_up(self) -> None:
            self._disarm()
            self.transport.abort()

    class ImpatientWebSocket(WebSocketsSansIOProtocol):
        _abort_timer: asyncio.TimerHandle | None = None
        _next_slice: asyncio.Handle | None = None

        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(transport)
            self._unread = bytearray()
            peer: Any = transport.get_extra_info("socket")
            if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
                peer.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)

        async def send(self, message: Any) -> None:  # uvicorn's union of ASGI messages
            if message["type"] == "websocket.close":
                self.writable.set()  # a close frame need not wait for the peer to read what is before it
            await super().send(message)
            if message["type"] == "websocket.close":
                self._take_slice()  # nobody calls `receive` any more, and the peer's goodbye may be in it

        def data_received(self, data: bytes) -> None:
            self._unread += data
            self._take_slice()

        async def receive(self) -> Any:  # uvicorn's union of ASGI messages
            message = await super().receive()
            self._take_slice()
            return message

        def _take_slice(self) -> None:
            """Take the next bytes apart, unless whole messages wait: then `receive` comes back to this."""
            if not self._unread or self.read_paused or self._next_slice is not None:
                return
            piece = bytes(self._unread[:SLICE_BYTES])
            del self._unread[:SLICE_BYTES]
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._unread:
                self.transport.pause_reading()
            if self._unread and not self.read_paused:
                self._next_slice = self.loop.call_soon(self._go_on)
            elif not self.read_paused:
                self.transport.resume_reading()

        def _go_on(self) -> None:
            self._next_slice = None
            self._take_slice()

        async def run_asgi(self) -> None:
            try:
                await super().run_asgi()
            finally:
                if not self.disconnected:
                    self._give_up_in(patience.close_limit_s)

        def keepalive_timeout(self) -> None:
            super().keepalive_timeout()
            self._give_up_in(1.0)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._abort_timer is not None:
                self._abort_timer.cancel()
            self._unread.clear()
            super().connection_lost(exc)

        def _give_up_in(self, delay_s: float) -> None:
            if self._abort_timer is None:
                self._abort_timer = self.loop.call_later(delay_s, self.transport.abort)

    return HeaderLimit, ImpatientWebSocket
