"""The worker process from start to drain, over a real socket, in a real process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from streaming.packets import (
    MAX_PACKET_BYTES,
    CancelTurn,
    CloseSession,
    CommitTurn,
    DoneReason,
    Hello,
    OpenSession,
    Ready,
    SessionFailed,
    TurnDone,
    WorkerStatus,
    decode_reply,
)
from streaming.transport import FrameSplitter, frame_packet
from tests.streaming.engine.driving import GREEDY, Said, commands_of, speech

if TYPE_CHECKING:
    from pathlib import Path

    from streaming.packets import Command, Reply


class Gateway:
    """The other end of the link, blocking."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(60)
        self._splitter = FrameSplitter()
        self.replies: list[Reply] = []

    def accept(self) -> None:
        self._link, _ = self._listener.accept()
        self._link.settimeout(60)

    def send(self, *commands: Command) -> None:
        self.send_bytes(b"".join(map(frame_packet, commands)))

    def send_bytes(self, frames: bytes) -> None:
        self._link.sendall(frames)

    def wait_for(self, kind: type[Reply]) -> Reply:
        while True:
            while (body := self._splitter.pop()) is None:
                received = self._link.recv(1 << 16)
                assert received, f"the worker hung up before {kind.__name__}"
                self._splitter.push(received)
            reply = decode_reply(body)
            self.replies.append(reply)
            if isinstance(reply, kind):
                return reply

    def close(self) -> None:
        self._link.close()
        self._listener.close()


def start(
    path: Path, checkpoint: Path, module: str = "streaming.engine"
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, str(path), "--model", str(checkpoint)]
    sizes = ["--dtype", "fp32", "--num-lanes", "2", "--context-tokens", "1024"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *sizes], env=environment)


@pytest.mark.slow
def test_a_worker_answers_beats_and_drains(tmp_path: Path, checkpoint_dir: Path) -> None:
    gateway = Gateway(tmp_path / "link")
    process = start(tmp_path / "link", checkpoint_dir)
    try:
        gateway.accept()
        gateway.wait_for(Hello)
        ready = gateway.wait_for(Ready)
        assert isinstance(ready, Ready)
        assert ready.capacity.num_lanes == 2
        gateway.send(OpenSession("a"), *commands_of(Said(sound=speech(1.0)), "a", 0))
        gateway.send(CommitTurn("a", 0, GREEDY))
        done = gateway.wait_for(TurnDone)
        assert isinstance(done, TurnDone)
        assert done.reason is not DoneReason.FAILED
        status = gateway.wait_for(WorkerStatus)
        assert isinstance(status, WorkerStatus)
        assert status.step_count > 0
        assert status.lateness_ms < 5000
        gateway.send(CommitTurn("a", 1, GREEDY), CancelTurn("a", 1, 0))
        gateway.wait_for(TurnDone)
        process.send_signal(signal.SIGTERM)
        gateway.send(CloseSession("a"))
        assert process.wait(30) == 0
    finally:
        gateway.close()
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("garbage", "message"),
    [
        ((MAX_PACKET_BYTES + 1).to_bytes(4, "little"), "33554433"),
        (frame_packet(CloseSession("a"))[:-3] + b"???", "could not be read"),
    ],
    ids=["oversize", "no packet"],
)
def test_what_is_no_packet_ends_the_worker_with_the_reason(
    tmp_path: Path,
    checkpoint_dir: Path,
    capfd: pytest.CaptureFixture[str],
    garbage: bytes,
    message: str,
) -> None:
    """Only a bug of ours sends it; a link that has lost its frames cannot be trusted again. The gateway starts anew."""
    gateway = Gateway(tmp_path / "link")
    process = start(tmp_path / "link", checkpoint_dir)
    try:
        gateway.accept()
        gateway.wait_for(Ready)
        gateway.send(OpenSession("a"))
        gateway.send_bytes(garbage)
        assert process.wait(30) == 0
        assert message in capfd.readouterr().err
    finally:
        gateway.close()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_out_of_memory_twice_costs_one_session_then_the_worker(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    """The status asks for a new worker; the session that paid was told why before that."""
    gateway = Gateway(tmp_path / "link")
    process = start(tmp_path / "link", checkpoint_dir, "tests.streaming.engine.full_worker")
    try:
        gateway.accept()
        gateway.wait_for(Ready)
        gateway.send(OpenSession("a"))
        failed = gateway.wait_for(SessionFailed)
        assert isinstance(failed, SessionFailed)
        assert (failed.session_id, failed.code) == ("a", "out_of_memory")
        assert process.poll() is None
        gateway.send(OpenSession("b"))
        assert process.wait(30) == 71
    finally:
        gateway.close()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_missing_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "link")
    process = start(tmp_path / "link", tmp_path / "nothing")
    try:
        gateway.accept()
        assert process.wait(60) == 78
    finally:
        gateway.close()
        process.kill()
        process.wait()
