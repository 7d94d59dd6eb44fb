"""Media made to break decoders (faults F20 to F23 of `docs/operations.md`): refused, cut, or shown wrong; never more.

Every test goes through a real decoder process, asserts that the fault struck, and that the process or its successor
decodes the next good stream.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.media.child import DecoderLost
from server.media.jobs import Decoded, FaultCode, MediaJob, MediaType, Stills, StreamData
from server.media.stream import MAX_CHUNK_CPU_S, MAX_CHUNK_FRAMES, MAX_CHUNK_SOUND_S
from tests.server.media.files import (
    RECORDINGS,
    collect,
    decode,
    picture,
    record,
    repeated_frame,
    repeated_silence,
    thirds,
    with_size,
)
from tests.server.media.pools import child, pool_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from server.media.child import DecoderChild

pytestmark = pytest.mark.slow  # each starts real processes

MAX_MEMORY_KB = 512 * 1024
PROMPT_S = 0.1
"""How soon what is refused from its header is refused; processor time, as the wall is shared."""


def _file(type_: MediaType, file: bytes, key: str = "k") -> StreamData:
    return StreamData(key, type_, file, is_last=True, is_new=True)


def _memory_kb(pid: int, row: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(row))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Outcome:
    """What one job did to a process."""

    def __init__(self, answers: list[Decoded], cpu_s: float, peak_kb: int) -> None:
        self.fault = answers[-1].fault
        self.code = self.fault.code if self.fault else None
        self.num_answers = len(answers)
        self.result = collect(answers)
        self.cpu_s = cpu_s
        self.peak_kb = peak_kb
        """Of this job and those before it."""


def outcomes(jobs: Mapping[str, MediaJob]) -> dict[str, Outcome]:
    """Do jobs one after the other in one process, which, unlike a pool's, goes on after a fault."""

    async def run() -> dict[str, Outcome]:
        async with child() as process:
            return {name: await do(process, job) for name, job in jobs.items()}

    async def do(process: DecoderChild, job: MediaJob) -> Outcome:
        answers: list[Decoded] = []
        before_s = _cpu_s(process.pid)
        async with asyncio.timeout(10):
            await process.run(job, answers.append)
        cpu_s = _cpu_s(process.pid) - before_s
        return Outcome(answers, cpu_s, _memory_kb(process.pid, "VmPeak"))

    return asyncio.run(run())


# ---- F20: huge dimensions


def test_f20_a_huge_picture_is_refused_from_its_header() -> None:
    files = {kind: with_size(picture(kind), 16_000, 16_000) for kind in ("JPEG", "PNG", "WEBP")}
    jobs = {kind: Stills(kind, file, 313_600) for kind, file in files.items()}
    for kind, outcome in outcomes(jobs).items():
        assert outcome.code is FaultCode.IMAGE_TOO_LARGE, kind
        assert outcome.cpu_s <= PROMPT_S, kind
        assert outcome.peak_kb < MAX_MEMORY_KB, kind


def test_f20_the_largest_picture_allowed_fits_into_the_process() -> None:
    files = {
        "PNG": picture("PNG", (4096, 4096), "RGBA"),
        "JPEG": picture("JPEG", (4096, 4096), progressive=True),
        "WEBP": picture("WEBP", (4096, 4096), "RGBA", lossless=True),
    }
    jobs = {kind: Stills(kind, file, 313_600) for kind, file in files.items()}
    for kind, outcome in outcomes(jobs).items():
        assert outcome.fault is None, kind


def _without_claim(file: bytes, width: int, height: int, new: tuple[int, int]) -> bytes:
    """A Matroska file whose header claims another size than its frames have."""
    old_size = b"\xb0\x82" + struct.pack(">H", width) + b"\xba\x82" + struct.pack(">H", height)
    new_size = b"\xb0\x82" + struct.pack(">H", new[0]) + b"\xba\x82" + struct.pack(">H", new[1])
    assert file.count(old_size) == 1
    return file.replace(old_size, new_size)


def _with_vp8_size(file: bytes, width: int, height: int) -> bytes:
    """A VP8 file whose key frames have another size than the header claims."""
    start_code = b"\x9d\x01\x2a"
    at, changed = file.index(start_code), bytearray(file)
    struct.pack_into("<HH", changed, at + len(start_code), width, height)
    return bytes(changed)


def _large(name: str) -> bytes:
    recording = RECORDINGS[name]
    return record(replace(recording, sound=None), 0.1, (4096, 2304))


def _disguised(name: str) -> bytes:
    return _without_claim(_large(name), 4096, 2304, (320, 240))


def _small_with(width: int, height: int) -> bytes:
    return _with_vp8_size(record(RECORDINGS["vp8"], 0.5), width, height)


WEBM, MP4 = MediaType.WEBM, MediaType.MP4
HUGE: dict[str, tuple[MediaType, Callable[[], bytes]]] = {
    "VP8 as it says": (WEBM, lambda: _large("vp8")),
    "VP9 as it says": (WEBM, lambda: _large("vp9")),
    "H.264 as it says": (MP4, lambda: _large("h264")),
    "VP8 in disguise": (WEBM, lambda: _disguised("vp8")),
    "VP9 in disguise": (WEBM, lambda: _disguised("vp9")),
    "H.264 in disguise": (WEBM, lambda: _disguised("h264 in matroska")),
    "VP8 whose frames grow to the utmost": (WEBM, lambda: _small_with(16_383, 16_383)),
    "VP8 whose frames grow too wide": (WEBM, lambda: _small_with(8191, 1)),
}


def test_f20_a_huge_video_is_refused() -> None:
    jobs = {name: _file(type_, make()) for name, (type_, make) in HUGE.items()}
    for name, outcome in outcomes(jobs).items():
        assert not outcome.result.frames, name
        assert outcome.code is FaultCode.MEDIA_DECODE_ERROR, name
        assert outcome.cpu_s <= PROMPT_S, name
        assert outcome.peak_kb <= MAX_MEMORY_KB, name


def test_f20_full_hd_is_not_huge() -> None:
    recordings = {name: RECORDINGS[name] for name in ("vp8", "vp9", "h264")}
    jobs = {
        name: _file(recording.type, record(recording, 0.2, (1920, 1080)))
        for name, recording in recordings.items()
    }
    for name, outcome in outcomes(jobs).items():
        assert outcome.fault is None, name
        assert len(outcome.result.frames) == 1, name
        assert outcome.peak_kb < MAX_MEMORY_KB, name


# ---- F21: bombs by count


def test_f21_minutes_of_black_or_silence_are_cut_at_the_budget() -> None:
    bombs = {"black": repeated_frame(300 * 30), "silence": repeated_silence(10 * 60 * 50)}
    assert len(bombs["black"]) < 250_000
    assert len(bombs["silence"]) < 500_000
    jobs = {name: _file(MediaType.WEBM, bomb) for name, bomb in bombs.items()}
    for name, outcome in outcomes(jobs).items():
        assert outcome.code is FaultCode.MEDIA_DECODE_ERROR, name
        assert outcome.result.frames or outcome.result.pcm, name  # up to the budget
        assert len(outcome.result.frames) <= MAX_CHUNK_FRAMES, name
        assert len(outcome.result.pcm) <= MAX_CHUNK_SOUND_S * 32_000, name
        assert outcome.cpu_s <= MAX_CHUNK_CPU_S, name


def test_f21_a_picture_of_endless_passes_is_ended() -> None:
    jpeg = picture("JPEG", (4096, 4096), progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    bomb = jpeg[:-2] + scan * ((8_000_000 - len(jpeg)) // len(scan)) + b"\xff\xd9"

    async def run() -> None:
        async with pool_of(job_s=2.0) as (pool, answers):
            begun = time.monotonic()
            (answer,) = await answers.to(pool, Stills("s", bomb, 313_600))
            assert time.monotonic() - begun < 10
            if answer.fault:
                assert answer.fault.code is FaultCode.INVALID_IMAGE
            assert (await answers.to(pool, Stills("t", picture("PNG"), 100)))[0].frames

    asyncio.run(run())


# ---- F22: what refers to something else


def _references(port: int, file: Path) -> dict[str, bytes]:
    url = f"http://127.0.0.1:{port}/x"
    texts = {
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "playlist of a file": f"#EXTM3U\n#EXTINF:1,\n{file}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{url}'\nfile '{file}'\n",
        "dash": f"<MPD><Period><AdaptationSet><BaseURL>{url}</BaseURL></AdaptationSet></Period></MPD>",
        "subtitles": f"1\n00:00:00,000 --> 00:00:01,000\n<img src='{url}'>\n",
        "ass": f"[Script Info]\nTitle: {file}\n[Events]\n",
        "url": url,
    }
    return {name: text.encode() for name, text in texts.items()} | {
        "quicktime reference": _mov_reference(url, file)
    }


def _mov_reference(url: str, file: Path) -> bytes:
    """A fragmented MP4 whose track says that its media are elsewhere (a `dref` entry that is not "here")."""
    whole = record(RECORDINGS["h264"], 1)
    here = b"\x00\x00\x00\x0curl \x00\x00\x00\x01"
    assert here in whole
    return whole.replace(here, b"\x00\x00\x00\x0calis\x00\x00\x00\x00") + url.encode() + bytes(file)


@pytest.mark.parametrize("type_", list(MediaType))
def test_f22_nothing_that_media_refer_to_is_opened(type_: MediaType, tmp_path: Path) -> None:
    canary = tmp_path / "canary.webm"
    canary.write_bytes(record(RECORDINGS["vp8"], 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        files = _references(listener.getsockname()[1], canary)
        for name, outcome in outcomes(
            {name: _file(type_, file) for name, file in files.items()}
        ).items():
            assert outcome.cpu_s <= PROMPT_S, name
            if name != "quicktime reference" or type_ is not MediaType.MP4:
                assert outcome.code is FaultCode.MEDIA_DECODE_ERROR, name
                assert outcome.num_answers == 1, name
        with pytest.raises(BlockingIOError):
            listener.accept()


# ---- F23: real media, broken

NUM_MUTATIONS = 500
TIME_BOX_S = 5.0


def _mutations(seed: int) -> Iterator[MediaJob]:
    """Cut, flipped, doubled, swapped and overwritten recordings."""
    dice = random.Random(seed)
    streams = [(RECORDINGS[name].type, record(RECORDINGS[name])) for name in RECORDINGS]
    stills = [picture(kind, (320, 240)) for kind in ("JPEG", "PNG", "WEBP")]
    for index in range(NUM_MUTATIONS):
        type_, whole = dice.choice(streams)
        if index % 5 == 0:
            yield Stills(f"{index}", _mutate(dice, dice.choice(stills)), 10_000)
        else:
            yield _file(type_, _mutate(dice, whole), f"{index}")


def _mutate(dice: random.Random, whole: bytes) -> bytes:
    changed = bytearray(whole)
    at, length = dice.randrange(len(whole)), dice.randrange(1, 200)
    match dice.randrange(7):
        case 0:
            del changed[at:]
        case 1:
            del changed[at : at + length]
        case 2:
            changed[at:at] = changed[at : at + length]
        case 3:
            changed += whole
        case 4:
            changed[at : at + length] = dice.randbytes(length)
        case 5:  # the header holds the lengths
            for _ in range(3):
                changed[dice.randrange(min(1_500, len(whole)))] = dice.randrange(256)
        case _:
            for _ in range(dice.randrange(1, 20)):
                changed[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_f23_broken_media_end_in_an_answer_each_and_good_media_still_decode() -> None:
    """In processes that, unlike a pool's, go on after a fault: what one leaves behind would show in the next."""
    codes, num_lost = Counter[str](), 0

    async def run() -> None:
        nonlocal num_lost
        jobs, begun = _mutations(seed=23), time.monotonic()
        while time.monotonic() - begun < TIME_BOX_S:
            async with child() as process:
                try:
                    for job in jobs:
                        async with asyncio.timeout(10):
                            fault = await process.run(job, lambda decoded: None)
                        codes[fault.code if fault else "decoded"] += 1
                        assert _memory_kb(process.pid, "VmPeak") <= MAX_MEMORY_KB
                        if time.monotonic() - begun > TIME_BOX_S:
                            break
                except DecoderLost:
                    num_lost += 1
                    continue
                good = record(RECORDINGS["vp8"])
                answers: list[Decoded] = []
                assert await process.run(_file(MediaType.WEBM, good), answers.append) is None
                assert collect(answers) == decode([good], MediaType.WEBM)
                return

    asyncio.run(run())
    assert codes.total() >= 50  # even on a busy machine
    assert set(codes) <= {"decoded", *FaultCode} - {FaultCode.DROPPED}
    assert min(codes["decoded"], codes[FaultCode.MEDIA_DECODE_ERROR]) > 0
    assert num_lost <= codes.total() // 50  # a crash is survived, but it should be rare


def test_f23_a_pool_survives_broken_media_and_decodes_the_next_good_stream() -> None:
    async def run() -> None:
        async with pool_of(num_idle=2) as (pool, answers):
            for job in islice(_mutations(seed=24), 10):
                await answers.to(pool, job)
            assert pool.counters.num_faults > 0
            good = [
                await answers.to(
                    pool, StreamData("g", MediaType.WEBM, piece, index == 2, index == 0)
                )
                for index, piece in enumerate(thirds(record(RECORDINGS["vp8"])))
            ]
            whole = decode([record(RECORDINGS["vp8"])], MediaType.WEBM)
            assert collect(sum(good, [])) == whole

    asyncio.run(run())


def test_a_decoder_that_never_returns_is_ended_by_the_kernel() -> None:
    stuck = """
from server.media import decoder_process
decoder_process.MAX_CHUNK_CPU_S, decoder_process.HARD_CPU_MARGIN_S = 0.1, 0
decoder_process._limit_cpu()
while True: pass
"""
    ended = subprocess.run([sys.executable, "-c", stuck], timeout=20, check=False)
    assert ended.returncode == -signal.SIGXCPU
