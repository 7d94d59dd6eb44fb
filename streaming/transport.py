"""Framed packets on a Unix stream socket: an asyncio end for the gateway, one with two threads for the worker.

A frame is a 4-byte little-endian length and that many bytes of packet. A link ends when either side closes it or dies;
both ends learn that the same way, by end-of-file. What cannot be understood ends the link too, as it is a bug.

    worker   step loop ──send──▶ queue ──▶ writer thread ──one sendall per batch──▶ socket
             step loop ◀── whatever `receive` does ◀── reader thread ◀──────────────┘

The reader thread hands over every packet the moment it is read, so a cancel need not wait behind a step.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from streaming.errors import LinkError, WorkerLost
from streaming.packets import MAX_PACKET_BYTES, Packet, encode_packet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

PacketT = TypeVar("PacketT", bound=Packet)

LENGTH_BYTES = 4
READ_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 128 * 1024 * 1024
"""Both sides always read, so more than this unsent means that the other one hangs: the link is given up."""
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_MAX_PATH_BYTES = 107


def frame_packet(packet: Packet) -> bytes:
    """Return the packet as it goes over the socket.

    Raises:
        LinkError: longer than a frame may be.
    """
    body = encode_packet(packet)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class FrameSplitter:
    """Bytes of a stream, cut anywhere, to the bodies of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, received: bytes) -> None:
        self._buffer += received

    def pop(self) -> bytes | None:
        """Return the next body, or None if it is not complete.

        Raises:
            LinkError: the next frame is empty or longer than a frame may be.
        """
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
        if not 0 < length <= MAX_PACKET_BYTES:
            raise LinkError(f"a frame of {length} bytes; the limit is {MAX_PACKET_BYTES}")
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[LENGTH_BYTES:end])
        del self._buffer[:end]
        return body


# ---- the gateway's end


class AsyncLink(Generic[PacketT]):
    """One link in an event loop. One task receives; anyone in the loop may send."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decode: Callable[[bytes], PacketT],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = decode
        self._splitter = FrameSplitter()

    async def receive(self) -> PacketT | None:
        """Return the next packet; None when the link has ended, in whatever way. May be cancelled and called again.

        Raises:
            LinkError: what came is no packet of ours; close the link.
        """
        while (body := self._splitter.pop()) is None:
            try:
                received = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return None
            if not received:
                return None
            self._splitter.push(received)
        return self._decode(body)

    def send(self, packet: Packet) -> None:
        """Send without waiting. On a link that has ended nothing happens: `receive` tells of the end.

        Raises:
            LinkError: longer than a frame may be.
            WorkerLost: the other side has not read for `MAX_UNSENT_BYTES`; close the link.
        """
        if self._writer.is_closing():
            return
        self._writer.write(frame_packet(packet))
        unsent = self._writer.transport.get_write_buffer_size()
        if unsent > MAX_UNSENT_BYTES:
            raise WorkerLost(f"the worker does not read: {unsent} bytes are waiting for it")

    @property
    def num_unsent_bytes(self) -> int:
        """What waits for the other side to read."""
        return self._writer.transport.get_write_buffer_size()

    def close(self) -> None:
        """End the link; what is unsent is still tried."""
        self._writer.close()

    def abort(self) -> None:
        """End the link at once; what is unsent is lost."""
        self._writer.transport.abort()


async def serve_links(
    path: Path,
    decode: Callable[[bytes], PacketT],
    accept: Callable[[AsyncLink[PacketT]], Awaitable[None]],
) -> asyncio.Server:
    """Listen at `path` (replaced if it is a socket nobody serves) and run `accept` for every link.

    The socket is for its owner alone: mode 0600, and a peer of another user is hung up on.

    Raises:
        LinkError: the path is too long, taken by something else, or in a directory others may enter.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer_uid(writer.get_extra_info("socket")) == os.getuid():
                await accept(AsyncLink(reader, writer, decode))
        finally:
            writer.close()

    return await asyncio.start_unix_server(connected, sock=_bind(path))


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise LinkError(
            f"socket path {path} is longer than {_MAX_PATH_BYTES} bytes; choose another"
        )
    if path.parent.stat().st_mode & 0o077:
        raise LinkError(f"others may enter {path.parent}; chmod 700 it or choose another directory")
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise LinkError(f"{path} exists and is no socket; remove it or choose another path")
        path.unlink()  # of a gateway that was killed: whoever is alive holds its own listener, not the name
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    path.chmod(0o600)
    return listener


def _peer_uid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    return int(_PEER_CREDENTIALS.unpack(credentials)[1])


# ---- the worker's end


def dial(path: Path, timeout_s: float = 10.0) -> socket.socket:
    """Connect to the gateway, which listens before it starts workers.

    Raises:
        WorkerLost: nobody listens there.
    """
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dialled.settimeout(timeout_s)
    try:
        dialled.connect(os.fspath(path))
    except OSError as fault:
        dialled.close()
        raise WorkerLost(f"no gateway listens at {path}: {fault}") from fault
    dialled.settimeout(None)
    return dialled


class ThreadedLink(Generic[PacketT]):
    """One link with a reader and a writer thread.

    Args:
        connection: a connected stream socket; the link owns it from now on.
        decode: body to packet, in the reader thread.
        receive: called in the reader thread with every packet, in order. Must not block or raise.
        ended: called once, in the reader thread, after the last packet: with None at end-of-file, else with what was
            wrong.
    """

    def __init__(
        self,
        connection: socket.socket,
        decode: Callable[[bytes], PacketT],
        receive: Callable[[PacketT], None],
        ended: Callable[[LinkError | None], None],
    ) -> None:
        self._connection = connection
        self._decode = decode
        self._receive = receive
        self._ended = ended
        self._unsent: deque[bytes] = deque()
        self._num_unsent_bytes = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="link-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="link-writer", daemon=True)

    def start(self) -> None:
        self._reader.start()
        self._writer.start()

    def send(self, packet: Packet) -> None:
        """Queue a packet; any thread. On a link that has ended nothing happens: `ended` tells of the end.

        Raises:
            LinkError: longer than a frame may be.
            WorkerLost: the other side has not read for `MAX_UNSENT_BYTES`.
        """
        frame = frame_packet(packet)
        with self._changed:
            if self._is_closing:
                return
            if self._num_unsent_bytes + len(frame) > MAX_UNSENT_BYTES:
                raise WorkerLost(
                    f"the gateway does not read: {self._num_unsent_bytes} bytes are waiting for it"
                )
            self._unsent.append(frame)
            self._num_unsent_bytes += len(frame)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued, for at most `timeout_s`, end the link and join both threads. Not from a callback."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._writer.join(timeout_s)
        self._shut_down()
        self._reader.join(timeout_s)
        self._writer.join(timeout_s)
        self._connection.close()

    def _read(self) -> None:
        fault: LinkError | None = None
        try:
            self._read_packets()
        except LinkError as error:
            fault = error
        with self._changed:
            self._is_closing = True  # nobody is left to send to
            self._unsent.clear()
            self._changed.notify()
        self._shut_down()
        self._ended(fault)

    def _read_packets(self) -> None:
        splitter = FrameSplitter()
        while True:
            try:
                received = self._connection.recv(READ_BYTES)
            except OSError:
                return
            if not received:
                return
            splitter.push(received)
            while (body := splitter.pop()) is not None:
                self._receive(self._decode(body))

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or self._is_closing)
                if not self._unsent:
                    return
                frames = b"".join(self._unsent)
                self._unsent.clear()
            try:
                self._connection.sendall(frames)
            except OSError:
                self._shut_down()  # wakes the reader, who tells of the end
                return
            with self._changed:
                self._num_unsent_bytes -= len(frames)

    def _shut_down(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
