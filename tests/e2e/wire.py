"""A WebSocket client of raw bytes, for what a library would not send."""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    body: bytes


def frame(
    opcode: int,
    body: bytes = b"",
    *,
    is_final: bool = True,
    rsv: int = 0,
    is_masked: bool = True,
    claimed: int | None = None,
) -> bytes:
    """One frame; `claimed` is the length its header says it has."""
    first = (0x80 if is_final else 0) | rsv << 4 | opcode
    length = len(body) if claimed is None else claimed
    mask_bit = 0x80 if is_masked else 0
    if length < 126:
        head = struct.pack("!BB", first, mask_bit | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    if not is_masked:
        return head + body
    mask = os.urandom(4)
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(body))


class RawSocket:
    """Connected and upgraded."""

    def __init__(
        self,
        port: int,
        more: str = "",
        path: str = "/v1/realtime",
        receive_bytes: int | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(HANDSHAKE.format(path=path, port=port, more=more).encode())
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            piece = self.socket.recv(4096)
            assert piece, "hung up during the handshake"
            self._received += piece
        self.response, _, self._received = self._received.partition(b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def next_frame(self, limit_s: float = 10) -> Frame | None:
        """None: hung up."""
        until = time.monotonic() + limit_s
        while (parsed := self._parse()) is None:
            self.socket.settimeout(max(0.01, until - time.monotonic()))
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not piece:
                return None
            self._received += piece
        return parsed

    def _parse(self) -> Frame | None:
        data = self._received
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length >= 126:
            size = 2 if length == 126 else 8
            if len(data) < 2 + size:
                return None
            length, start = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        if len(data) < start + length:
            return None
        self._received = data[start + length :]
        return Frame(data[0] & 0x0F, data[start : start + length])

    def close_code(self, limit_s: float = 10) -> int | None:
        """Read to the close frame; None: hung up without one."""
        until = time.monotonic() + limit_s
        while (found := self.next_frame(until - time.monotonic())) is not None:
            if found.opcode == CLOSE:
                return int.from_bytes(found.body[:2], "big")
        return None

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
