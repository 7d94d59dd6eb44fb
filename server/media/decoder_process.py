"""A decoder process: takes jobs on standard input, answers on standard output, can do nothing else.

`python -m server.media.decoder_process PARENT_PID`; the pool starts it, nobody else. What it decodes was made by
strangers to break decoders, so it is confined before it reads the first byte: memory, no file or socket can be opened
(no descriptor is left for one), no network where that may be taken away, processor time for each job, and it dies with
its parent. One job or one stream at a time; a fault in it concerns nobody else.

    4-byte length + MediaJob ──▶ stdin      stdout ──▶ 4-byte length + Decoded, the last of a job marked
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import resource
import signal
import sys
import time
from typing import BinaryIO

import av
import av.audio.codeccontext  # with the three below: what av loads when it opens a stream
import av.subtitles.codeccontext
import av.subtitles.stream
import av.video.codeccontext
import msgspec
import numpy as np
from PIL import Image, WebPImagePlugin

from server.media.jobs import (
    CloseStream,
    Decoded,
    MediaFault,
    MediaJob,
    MediaType,
    Stills,
    StreamData,
)
from server.media.still import FORMATS, decode_still
from server.media.stream import MAX_CHUNK_CPU_S, Budget, MediaError, decode_stream, encode_frame
from streaming.media import INPUT_SAMPLE_RATE, SAMPLE_BYTES

LENGTH_BYTES = 4
MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Of address space. Enough for 1080p; a picture of 16 000 x 16 000 pixels fails."""
STANDARD_DESCRIPTORS = 3
NICENESS = 5
"""Whoever talks comes first."""
HARD_CPU_MARGIN_S = 1
"""A decoder that never returns to count its own time is ended by the kernel."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    parent_pid = int(sys.argv[1])
    _die_with(parent_pid)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # meant for the parent, which ends us in its own time
    os.nice(NICENESS)
    _warm_up()
    _confine()
    _die_with(parent_pid)  # a change of user namespace may have undone it
    link = _Link(sys.stdin.buffer, sys.stdout.buffer)
    link.send(Decoded("", is_job_done=True))  # ready
    _serve(link)


def _serve(link: _Link) -> None:
    """Until the parent closes the pipe."""
    while (job := link.receive()) is not None:
        _limit_cpu()
        match job:
            case Stills():
                link.send(decode_still(job))
            case StreamData():
                _decode_stream(link, job)
            case CloseStream():  # of a stream that has just ended by itself
                link.send(Decoded(job.key, is_job_done=True))


def _decode_stream(link: _Link, first: StreamData) -> None:
    budget = Budget()
    answer = _Answer(first.key, link)
    source = _JobSource(first, link, answer, budget)
    try:
        decode_stream(first, source, budget, answer.add)
    except MediaError as error:
        answer.finish(error.fault)
    else:
        # A demuxer may stop before the bytes do, at what it takes for the end.
        while not source.is_at_end:
            source.skip()
        answer.finish()


class _Link:
    """Packets over the two pipes."""

    def __init__(self, jobs: BinaryIO, answers: BinaryIO) -> None:
        self._jobs = jobs
        self._answers = answers
        self._decoder = msgspec.msgpack.Decoder(MediaJob)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self) -> MediaJob | None:
        """Return the next job; None when there will be no more."""
        length = int.from_bytes(self._jobs.read(LENGTH_BYTES), "little")
        body = self._jobs.read(length)
        return self._decoder.decode(body) if body else None

    def send(self, decoded: Decoded) -> None:
        body = self._encoder.encode(decoded)
        self._answers.write(len(body).to_bytes(LENGTH_BYTES, "little") + body)
        self._answers.flush()


class _Answer:
    """What comes out of a stream, on its way to the parent: frames at once, sound when the bytes so far are used up.

    Sound moves the input clock on, and what has left with its two seconds takes no frames any more. In a fragment all
    of the sound may lie before the pictures.
    """

    def __init__(self, key: str, link: _Link) -> None:
        self._key = key
        self._link = link
        self._pcm = bytearray()
        self._pcm_offset_ms = 0

    def add(self, decoded: Decoded) -> None:
        if decoded.frames:
            self._link.send(decoded)
            return
        end_ms = self._pcm_offset_ms + 1000 * len(self._pcm) // SAMPLE_BYTES // INPUT_SAMPLE_RATE
        if self._pcm and abs(decoded.pcm_offset_ms - end_ms) > 2:  # a jump of the clock
            self._send()
        if not self._pcm:
            self._pcm_offset_ms = decoded.pcm_offset_ms
        self._pcm += decoded.pcm

    def finish(self, fault: MediaFault | None = None) -> None:
        """All that the bytes so far hold has been added; the job is done."""
        self._send(is_job_done=True, fault=fault)

    def _send(self, is_job_done: bool = False, fault: MediaFault | None = None) -> None:
        self._link.send(
            Decoded(
                self._key,
                pcm=bytes(self._pcm),
                pcm_offset_ms=self._pcm_offset_ms,
                is_job_done=is_job_done,
                fault=fault,
            )
        )
        self._pcm.clear()


class _JobSource:
    """The bytes of a stream. When they are used up, its job is done and the next one is waited for."""

    def __init__(self, first: StreamData, link: _Link, answer: _Answer, budget: Budget) -> None:
        self._link = link
        self._answer = answer
        self._budget = budget
        self._unread = memoryview(first.data)
        self.is_at_end = first.is_last

    def read(self, num_bytes: int) -> bytes:
        while not self._unread and not self.is_at_end:
            self._next()
        taken, self._unread = self._unread[:num_bytes], self._unread[num_bytes:]
        return bytes(taken)

    def skip(self) -> None:
        """Let a piece of the stream pass."""
        self._next()

    def _next(self) -> None:
        self._answer.finish()
        match self._link.receive():
            case StreamData() as job if not job.is_new:
                self._unread, self.is_at_end = memoryview(job.data), job.is_last
            case CloseStream():
                self.is_at_end = True
            case None:
                os._exit(0)  # through the demuxer's C code there is no other way out
            case job:
                raise AssertionError(f"{type(job).__name__} within a stream")
        self._budget.begin()
        _limit_cpu()


# ---- confinement


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _warm_up() -> None:
    """Load what the libraries load on first use, by using them: later no file can be opened."""
    av.logging.set_level(av.logging.PANIC)
    Image.preinit()
    assert WebPImagePlugin.SUPPORTED
    for name in FORMATS:
        encoded = io.BytesIO()
        Image.new("RGBA" if name == "PNG" else "RGB", (16, 16)).save(encoded, name)
        still = decode_still(Stills("", encoded.getvalue(), 64))
        assert still.fault is None, still.fault
    first = StreamData("", MediaType.WEBM, _silence_in_matroska(), is_last=True, is_new=True)
    heard: list[Decoded] = []
    decode_stream(first, io.BytesIO(first.data), Budget(), heard.append)
    assert heard
    encode_frame(av.VideoFrame(16, 16, "yuv420p"), 64)


def _silence_in_matroska() -> bytes:
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="matroska") as container:
        track = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 960), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 48_000
        container.mux(track.encode(frame))
    return encoded.getvalue()


def _confine() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Where neither is permitted the descriptor limit still forbids sockets.
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    os.chdir("/")
    for limit, value in {
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,  # it would hold the user's pictures
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: STANDARD_DESCRIPTORS,
    }.items():
        resource.setrlimit(limit, (value, value))


def _limit_cpu() -> None:
    """Begin a job: the kernel ends this process if the job outlasts its budget by far."""
    end_s = math.ceil(time.process_time() + MAX_CHUNK_CPU_S) + HARD_CPU_MARGIN_S
    resource.setrlimit(resource.RLIMIT_CPU, (end_s, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
