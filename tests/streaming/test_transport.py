"""Links over real sockets: whole and cut frames, joined writes, and every way of ending."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import transport
from streaming.errors import LinkError, WorkerLost
from streaming.packets import (
    MAX_PACKET_BYTES,
    AppendImage,
    AudioDelta,
    CancelTurn,
    CloseSession,
    Command,
    Hello,
    Reply,
    TextDelta,
    decode_command,
    decode_reply,
    encode_packet,
)
from streaming.transport import (
    AsyncLink,
    FrameSplitter,
    ThreadedLink,
    dial,
    frame_packet,
    serve_links,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

T = TypeVar("T")
LIMIT_S = 10.0
"""Only a test that fails waits so long."""


def run(main: Coroutine[object, object, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, LIMIT_S))


class Received:
    """What a threaded link was told, in order; the end comes last."""

    def __init__(self) -> None:
        self.told: queue.Queue[Command | LinkError | None] = queue.Queue()

    def next(self) -> Command | LinkError | None:
        return self.told.get(timeout=LIMIT_S)


@pytest.fixture
def worker_end() -> Iterator[tuple[socket.socket, ThreadedLink[Command], Received]]:
    """A raw socket in the gateway's place, and the link it is connected to."""
    ours, theirs = socket.socketpair()
    received = Received()
    link = ThreadedLink(theirs, decode_command, received.told.put, received.told.put)
    link.start()
    with ours:
        yield ours, link, received
        link.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "link"


# ---- frames


@given(st.lists(st.binary(min_size=1, max_size=60)), st.lists(st.integers(0, 500)))
def test_any_slicing_splits_into_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter, frames = FrameSplitter(), []
    for a, b in zip(edges, edges[1:], strict=False):
        splitter.push(stream[a:b])
        while (body := splitter.pop()) is not None:
            frames.append(body)
    assert frames == bodies


@pytest.mark.parametrize("length", [0, MAX_PACKET_BYTES + 1, 2**32 - 1])
def test_impossible_lengths_are_found_before_the_body_arrives(length: int) -> None:
    splitter = FrameSplitter()
    splitter.push(frame_packet(CloseSession("s")) + length.to_bytes(4, "little"))
    assert splitter.pop() is not None  # what came before is still good
    with pytest.raises(LinkError, match=f"{length} bytes"):
        splitter.pop()


# ---- the worker's end


def test_commands_arrive_in_order_however_the_bytes_were_cut(
    worker_end: tuple[socket.socket, ThreadedLink[Command], Received],
) -> None:
    ours, _, received = worker_end
    commands = [CancelTurn("s", n) for n in range(20)]
    stream = b"".join(map(frame_packet, commands))
    for at in range(0, len(stream), 7):
        ours.sendall(stream[at : at + 7])
    assert [received.next() for _ in commands] == commands


def test_replies_arrive_whole_and_in_order(
    worker_end: tuple[socket.socket, ThreadedLink[Command], Received],
) -> None:
    ours, link, _ = worker_end
    replies: list[Reply] = [AudioDelta("s", 1, n, bytes([n % 256]) * n) for n in range(0, 5000, 7)]
    sender = threading.Thread(target=lambda: [link.send(reply) for reply in replies])
    sender.start()
    splitter, got = FrameSplitter(), []
    ours.settimeout(LIMIT_S)
    while len(got) < len(replies):
        splitter.push(ours.recv(100_000))
        while (body := splitter.pop()) is not None:
            got.append(decode_reply(body))
    sender.join()
    assert got == replies


def test_small_packets_are_joined_into_one_write() -> None:
    """While the first write waits for room, the rest of the queue becomes the second."""

    class Recorder(socket.socket):
        sizes: list[int] = []

        def sendall(self, frames: bytes, *args: int) -> None:  # type: ignore[override]
            self.sizes.append(len(frames))
            super().sendall(frames, *args)

    ours, theirs = socket.socketpair()
    recorder = Recorder(fileno=theirs.detach())
    link = ThreadedLink(recorder, decode_command, lambda _: None, lambda _: None)
    reply = TextDelta("s", 1, "word")
    for _ in range(100):
        link.send(reply)
    link.start()
    with ours:
        total = 100 * len(frame_packet(reply))
        got = 0
        while got < total:
            got += len(ours.recv(100_000))
        link.close()
    assert Recorder.sizes == [total]


def test_a_packet_is_handed_over_in_the_reader_thread() -> None:
    """A cancel takes effect while whoever made the link is busy."""
    ours, theirs = socket.socketpair()
    cancelled = threading.Event()

    def receive(command: Command) -> None:
        assert threading.current_thread().name == "link-reader"
        cancelled.set()

    link = ThreadedLink(theirs, decode_command, receive, lambda _: None)
    link.start()
    with ours:
        ours.sendall(frame_packet(CancelTurn("s", 1)))
        assert cancelled.wait(LIMIT_S)
        link.close()


def test_end_of_file_is_told_once_after_the_last_packet(
    worker_end: tuple[socket.socket, ThreadedLink[Command], Received],
) -> None:
    ours, link, received = worker_end
    ours.sendall(frame_packet(CloseSession("s")) + b"\x09\x00")  # cut in the middle of a length
    ours.close()
    assert received.next() == CloseSession("s")
    assert received.next() is None
    link.send(TextDelta("s", 1, "into the void"))
    link.close()
    link.close()
    assert received.told.empty()


@pytest.mark.parametrize("garbage", [b"\x02\x00\x00\x00\xc0\xc0", b"\xff\xff\xff\xff"])
def test_garbage_ends_the_link_with_its_reason(
    worker_end: tuple[socket.socket, ThreadedLink[Command], Received], garbage: bytes
) -> None:
    ours, _, received = worker_end
    ours.sendall(frame_packet(CloseSession("s")) + garbage)
    assert received.next() == CloseSession("s")
    assert isinstance(received.next(), LinkError)
    ours.settimeout(LIMIT_S)
    assert ours.recv(1) == b""  # the other side learns of it


def test_close_sends_what_is_queued(
    worker_end: tuple[socket.socket, ThreadedLink[Command], Received],
) -> None:
    ours, link, received = worker_end
    replies = [TextDelta("s", 1, "bye")] * 50
    for reply in replies:
        link.send(reply)
    link.close()
    assert received.next() is None
    got = b""
    while piece := ours.recv(100_000):
        got += piece
    assert got == b"".join(map(frame_packet, replies))


def test_a_gateway_that_never_reads_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    link = ThreadedLink(theirs, decode_command, lambda _: None, lambda _: None)
    link.start()
    reply = AudioDelta("s", 1, 0, bytes(MAX_PACKET_BYTES - 100))
    with ours:
        with pytest.raises(WorkerLost, match="does not read"):
            for _ in range(10):
                link.send(reply)
        link.close(timeout_s=0.01)


def test_dialling_nobody_says_where(path: Path) -> None:
    with pytest.raises(WorkerLost, match=str(path)):
        dial(path)


# ---- both ends


def test_packets_of_every_size_cross_both_ways(path: Path) -> None:
    sizes = [0, 1, 100, 70_000, 3_000_000, MAX_PACKET_BYTES - 100]
    images = [AppendImage("s", 1, os.urandom(size)) for size in sizes]

    async def gateway() -> list[Reply | None]:
        done: asyncio.Future[list[Reply | None]] = asyncio.get_running_loop().create_future()

        async def accept(link: AsyncLink[Reply]) -> None:
            first = await link.receive()
            for image in images:
                link.send(image)
            done.set_result([first, *[await link.receive() for _ in images], await link.receive()])

        server = await serve_links(path, decode_reply, accept)
        worker = threading.Thread(target=echo)
        worker.start()
        try:
            return await done
        finally:
            server.close()
            await asyncio.to_thread(worker.join)

    def echo() -> None:
        received = Received()
        link = ThreadedLink(dial(path), decode_command, received.told.put, received.told.put)
        link.start()
        link.send(Hello(1, "build", "model"))
        for _ in images:
            command = received.next()
            assert isinstance(command, AppendImage)
            link.send(AudioDelta("s", 1, 0, command.image))
        link.close()

    first, *audio, end = run(gateway())
    assert first == Hello(1, "build", "model") and end is None
    assert [a.pcm for a in audio] == [i.image for i in images]  # type: ignore[union-attr]


WORKER = """
import sys, signal
from pathlib import Path
from streaming.packets import Hello, decode_command
from streaming.transport import ThreadedLink, dial
link = ThreadedLink(dial(Path(sys.argv[1])), decode_command, lambda _: None, lambda _: None)
link.start()
link.send(Hello(1, "child", "model"))
signal.pause()
"""


def test_a_killed_worker_is_noticed_at_once(path: Path) -> None:
    def start_worker() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(path)])

    async def gateway() -> float:
        told: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def accept(link: AsyncLink[Reply]) -> None:
            assert await link.receive() == Hello(1, "child", "model")
            child.send_signal(signal.SIGKILL)
            killed_at = time.perf_counter()
            assert await link.receive() is None
            link.send(CloseSession("s"))  # nobody is there, and nothing happens
            told.set_result(time.perf_counter() - killed_at)

        server = await serve_links(path, decode_reply, accept)
        child = start_worker()
        try:
            return await told
        finally:
            child.kill()
            child.wait()
            server.close()

    assert run(gateway()) < 1.0  # the kernel closes the socket with the process; a millisecond


def test_a_worker_sees_its_gateway_go(path: Path) -> None:
    async def gateway() -> Command | LinkError | None:
        async def accept(link: AsyncLink[Reply]) -> None:
            link.close()

        server = await serve_links(path, decode_reply, accept)
        received = Received()
        link = ThreadedLink(dial(path), decode_command, received.told.put, received.told.put)
        link.start()
        told = await asyncio.to_thread(received.next)
        await asyncio.to_thread(link.close)
        server.close()
        return told

    assert run(gateway()) is None


def test_a_cancelled_receive_loses_nothing() -> None:
    async def gateway() -> list[Reply | None]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        link = AsyncLink(reader, writer, decode_reply)
        frame = frame_packet(TextDelta("s", 1, "a")) + frame_packet(TextDelta("s", 1, "b"))
        ours.sendall(frame[:9])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.receive(), 0.01)
        ours.sendall(frame[9:])
        got = [await link.receive(), await link.receive()]
        ours.close()
        got.append(await link.receive())
        link.close()
        return got

    assert run(gateway()) == [TextDelta("s", 1, "a"), TextDelta("s", 1, "b"), None]


def test_the_gateway_gives_up_a_worker_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNSENT_BYTES", 1_000_000)

    async def gateway() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        link = AsyncLink(reader, writer, decode_reply)
        with ours, pytest.raises(WorkerLost, match="does not read"):
            for _ in range(100):
                link.send(AppendImage("s", 1, bytes(100_000)))
        writer.transport.abort()

    run(gateway())


def test_the_socket_is_its_owners_alone(path: Path) -> None:
    async def gateway() -> None:
        async def accept(link: AsyncLink[Reply]) -> None: ...

        server = await serve_links(path, decode_reply, accept)
        server.close()

    run(gateway())
    assert path.stat().st_mode & 0o777 == 0o600
    run(gateway())  # the name of a dead gateway's socket is taken over


def test_peers_of_other_users_are_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_peer_uid", lambda _: os.getuid() + 1)

    async def gateway() -> bytes:
        async def accept(link: AsyncLink[Reply]) -> None:
            raise AssertionError("let in")

        server = await serve_links(path, decode_reply, accept)
        reader, writer = await asyncio.open_unix_connection(path)
        got = await reader.read()
        writer.close()
        server.close()
        return got

    assert run(gateway()) == b""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("mine"), "is no socket"),
        (lambda path: path.parent.chmod(0o755), "others may enter"),
    ],
)
def test_unsafe_places_are_refused(path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(path)

    async def accept(link: AsyncLink[Reply]) -> None: ...

    with pytest.raises(LinkError, match=message):
        run(serve_links(path, decode_reply, accept))


def test_paths_too_long_for_a_socket_are_refused(path: Path) -> None:
    async def accept(link: AsyncLink[Reply]) -> None: ...

    with pytest.raises(LinkError, match="longer than 107"):
        run(serve_links(path.parent / ("x" * 100), decode_reply, accept))


def test_oversize_packets_fail_at_their_sender() -> None:
    assert len(encode_packet(AppendImage("s", 1, bytes(MAX_PACKET_BYTES - 100)))) < MAX_PACKET_BYTES
    with pytest.raises(LinkError, match="limit"):
        frame_packet(AppendImage("s", 1, bytes(MAX_PACKET_BYTES)))
