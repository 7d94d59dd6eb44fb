"""A decoder process can decode and nothing else, and ends when nobody needs it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.media.child import DecoderChild, DecoderLost
from server.media.jobs import CloseStream, Decoded, FaultCode, MediaJob, Stills, StreamData
from tests.server.media.files import RECORDINGS, collect, cut, decode, picture, record, thirds
from tests.server.media.pools import child

pytestmark = pytest.mark.slow  # starting Python with a decoder takes half a second


async def _answers(process: DecoderChild, job: MediaJob) -> list[Decoded]:
    answers: list[Decoded] = []
    async with asyncio.timeout(10):
        fault = await process.run(job, answers.append)
    assert [answer.is_job_done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].fault == fault
    return answers


def _pieces(name: str, pieces: list[bytes], key: str = "k") -> list[StreamData]:
    last = len(pieces) - 1
    return [
        StreamData(key, RECORDINGS[name].type, piece, index == last, index == 0)
        for index, piece in enumerate(pieces)
    ]


def test_a_stream_through_the_process_equals_one_decoded_here() -> None:
    async def run() -> None:
        async with child() as process:
            for name in ("vp8", "h264"):
                whole = record(RECORDINGS[name])
                answers = []
                for job in _pieces(name, cut(whole, 5, 700, len(whole) // 2)):
                    answers += await _answers(process, job)
                assert collect(answers) == decode([whole], RECORDINGS[name].type)

    asyncio.run(run())


def test_each_third_is_answered_before_the_next_is_sent() -> None:
    async def run() -> None:
        async with child() as process:
            for job in _pieces("vp9", thirds(record(RECORDINGS["vp9"], 6))):
                result = collect(await _answers(process, job))
                assert 3 <= len(result.frames) <= 6
                assert len(result.pcm) // 2 == pytest.approx(2 * 16_000, rel=0.4)

    asyncio.run(run())


def test_a_stream_may_be_given_up_and_the_process_goes_on() -> None:
    async def run() -> None:
        async with child() as process:
            begin = _pieces("vp8", thirds(record(RECORDINGS["vp8"])))[0]
            for _ in range(3):
                assert await _answers(process, begin)
                assert (await _answers(process, CloseStream("k")))[-1].fault is None
            await _answers(process, CloseStream("k"))  # nothing is open
            (still,) = await _answers(process, Stills("s", picture("PNG"), 10_000))
            assert len(still.frames) == 1

    asyncio.run(run())


def test_data_behind_the_end_of_a_file_is_taken_and_forgotten() -> None:
    async def run() -> None:
        async with child() as process:
            whole = record(RECORDINGS["h264"])
            jobs = _pieces("h264", [whole, b"", bytes(10_000), b"", b"more"])
            for job in jobs:
                answers = await _answers(process, job)
                if answers[-1].fault:  # it may as well be called broken
                    assert answers[-1].fault.code is FaultCode.MEDIA_DECODE_ERROR
                    break
            assert (await _answers(process, Stills("s", picture("PNG"), 100)))[0].frames

    asyncio.run(run())


def test_the_process_has_no_descriptor_but_its_pipes_and_no_environment_of_ours() -> None:
    async def run() -> None:
        os.environ["PARLEY_SECRET_OF_THE_TEST"] = "x"
        try:
            async with child() as process:
                await _answers(process, Stills("s", picture("PNG"), 100))
                _check_confinement(Path(f"/proc/{process.pid}"))
        finally:
            del os.environ["PARLEY_SECRET_OF_THE_TEST"]

    asyncio.run(run())


def _check_confinement(process: Path) -> None:
    assert sorted(path.name for path in (process / "fd").iterdir()) == ["0", "1", "2"]
    environment = (process / "environ").read_text().split("\0")
    names = {entry.partition("=")[0] for entry in environment}
    assert names <= {"OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX", "LC_CTYPE", ""}
    rows = (process / "limits").read_text().splitlines()
    limits = {row[:26].strip(): row[26:].split()[:2] for row in rows}
    assert limits["Max address space"] == [str(512 * 2**20)] * 2
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max core file size"] == limits["Max file size"] == ["0", "0"]


def test_a_confined_process_can_open_neither_file_nor_socket_nor_much_memory() -> None:
    attempts = """
import socket, sys
from server.media import decoder_process
decoder_process._warm_up()
decoder_process._confine()
for attempt in (
    lambda: open("/etc/passwd"),
    lambda: open("/dev/null", "w"),
    lambda: socket.socket(),
    lambda: socket.socket(socket.AF_UNIX),
    lambda: bytearray(512 * 2**20),
):
    try:
        attempt()
        print("allowed")
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""
    ended = subprocess.run(
        [sys.executable, "-c", attempts], capture_output=True, text=True, timeout=20, check=True
    )
    assert ended.stdout.split() == ["OSError"] * 4 + ["MemoryError"]


def test_the_process_ends_when_its_pipe_is_closed() -> None:
    async def run() -> None:
        process = await DecoderChild.start()
        await _answers(process, _pieces("vp8", thirds(record(RECORDINGS["vp8"])))[0])
        process._stdin.close()
        async with asyncio.timeout(10):
            assert await process._process.wait() == 0
        with pytest.raises(DecoderLost):
            await process.run(Stills("s", b"", 1), lambda decoded: None)
        process.kill()

    asyncio.run(run())


def test_the_process_dies_with_its_parent() -> None:
    parent_code = """
import asyncio, os, signal
from server.media.child import DecoderChild
async def run():
    child = await DecoderChild.start()
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        try:
            parent.send_signal(signal.SIGKILL)
            # A descriptor of a process is readable once it has ended.
            ended, _, _ = select.select([descriptor], [], [], 10)
            assert ended
        finally:
            os.close(descriptor)


def test_a_process_that_cannot_start_is_lost_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def run() -> None:
        with pytest.raises(DecoderLost):
            await DecoderChild.start()

    asyncio.run(run())
