"""Films through the whole house: from a recorder's chunks to what the model counts, and what a bad one costs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.house import STEP_LIMIT_S
from tests.e2e.test_conversation import TALKATIVE
from tests.server.media.files import RECORDINGS, SECONDS, cut, record, repeated_frame, thirds

if TYPE_CHECKING:
    from tests.e2e.house import Caller, Event, House

MIN_FRAMES = 4
"""Of the six that a recording has at two a second: a cut may part one from its sound, and then it may be late."""
KILLS, FAULTS = "parley_decoder_kills", "parley_decoder_faults"


async def begin(caller: Caller) -> None:
    """Turns are declared, and replies are short."""
    sound = {"input": {"turn_detection": None}}
    await caller.configure(**TALKATIVE | {"audio": sound, "output_modalities": ["text"]})


async def send_chunk(caller: Caller, delivery: str, chunk: bytes, **members: object) -> None:
    members = {"type": "input_video_buffer.append", **members}
    if delivery == "binary":
        await caller.socket.send(json.dumps(members).encode() + b"\n" + chunk)
    else:
        members["video"] = base64.b64encode(chunk).decode()
        await caller.socket.send(json.dumps(members))


async def show(caller: Caller, name: str, delivery: str = "binary", seed: int = 0) -> None:
    """A whole recording, cut anywhere."""
    recording, rng = RECORDINGS[name], random.Random(seed)
    whole = record(recording)
    chunks = cut(whole, *(rng.randrange(1, len(whole)) for _ in range(7)))
    for seq, chunk in enumerate(chunks):
        is_last = seq == len(chunks) - 1
        await send_chunk(
            caller, delivery, chunk, format=recording.type, seq=seq, last=is_last, stream_id=name
        )


async def commit_and_ask(caller: Caller) -> tuple[Event, Event]:
    """What was taken of the frames, and the finished response."""
    await caller.send("input_audio_buffer.commit")
    taken = await caller.until("input_video_buffer.committed")
    await caller.send("response.create")
    return taken, dict((await caller.until("response.done"))["response"])


def wait_for_decoders(house: House, num_events: float) -> None:
    """So many messages have been read, and what they brought is decoded."""
    house.wait_until(lambda: house.figure("parley_received_events_total") >= num_events)
    house.wait_until(lambda: house.figure("parley_decoders_busy") == 0)


def decoder_pids(house: House) -> dict[int, int]:
    """Of every decoder process the bytes that it has read."""
    found = {}
    for task in Path(f"/proc/{house.process.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            if "decoder_process" in Path(f"/proc/{pid}/cmdline").read_text():
                counted = Path(f"/proc/{pid}/io").read_text()
                found[int(pid)] = int(counted.partition("rchar: ")[2].split()[0])
    return found


async def quiet_decoders(house: House) -> dict[int, int]:
    """The same, once two are ready and none is starting any more."""
    house.wait_until(lambda: house.figure("parley_decoders_idle") >= 2)
    async with asyncio.timeout(STEP_LIMIT_S):
        before: dict[int, int] = {}
        while (read := decoder_pids(house)) != before:
            before = read
            await asyncio.sleep(0.3)
    return read


@pytest.mark.parametrize("delivery", ["base64", "binary"])
@pytest.mark.parametrize("name", ["vp8", "h264"])
def test_a_recorders_chunks_are_seen_and_heard(real_house: House, name: str, delivery: str) -> None:
    async def scene() -> None:
        async with real_house.call() as caller:
            await begin(caller)
            real_house.wait_until(lambda: real_house.figure("parley_decoders_idle") >= 2)
            before = real_house.figure("parley_received_events_total")
            await show(caller, name, delivery)
            wait_for_decoders(real_house, before + 8)
            taken, done = await commit_and_ask(caller)
            assert taken["frames"] >= MIN_FRAMES
            assert abs(taken["end_ms"] - taken["start_ms"] - 1000 * SECONDS) < 200
            assert done["status"] in ("completed", "incomplete")
            counted = done["usage"]["input_token_details"]
            assert counted["image_tokens"] > 0
            assert counted["audio_tokens"] >= 25 * (SECONDS - 1)
            assert "error" not in [event["type"] for event in caller.heard]

    asyncio.run(scene())


def test_f21_a_bomb_costs_its_stream_one_error(real_house: House) -> None:
    async def scene() -> None:
        async with real_house.call() as caller, real_house.call() as other:
            await begin(caller)
            await begin(other)
            faults = real_house.figure(FAULTS)
            before = real_house.figure("parley_received_events_total")
            bomb = repeated_frame(300 * 30)
            for chunk in thirds(bomb):
                await send_chunk(caller, "binary", chunk, format="video/webm")
            error = (await caller.until("error"))["error"]
            assert error["code"] == "media_decode_error"
            await show(other, "vp8")
            wait_for_decoders(real_house, before + 3 + 8)
            taken, _ = await commit_and_ask(other)
            assert taken["frames"] >= MIN_FRAMES
            assert (await caller.ask("Still there?"))["status"] in ("completed", "incomplete")
            assert [e["type"] for e in caller.heard].count("error") == 1
            assert "error" not in [event["type"] for event in other.heard]
            assert real_house.figure(FAULTS) == faults + 1

    asyncio.run(scene())


def test_f24_a_killed_decoder_costs_its_stream_one_error(real_house: House) -> None:
    async def scene() -> None:
        async with real_house.call() as victim, real_house.call() as other:
            await begin(victim)
            await begin(other)
            kills, first = real_house.figure(KILLS), thirds(record(RECORDINGS["vp8"]))
            read = await quiet_decoders(real_house)
            before = real_house.figure("parley_received_events_total")

            def fed() -> list[int]:
                now = decoder_pids(real_house)
                return [pid for pid in read if now.get(pid, 0) >= read[pid] + len(first[0])]

            await send_chunk(victim, "binary", first[0], format="video/webm", seq=0)
            real_house.wait_until(lambda: bool(fed()))
            (pid,) = fed()
            os.kill(pid, signal.SIGKILL)
            await send_chunk(victim, "binary", first[1], format="video/webm", seq=1)
            await send_chunk(victim, "binary", first[2], format="video/webm", seq=2)
            assert (await victim.until("error"))["error"]["code"] == "media_decode_error"
            await show(other, "h264")
            await show(victim, "h264")
            wait_for_decoders(real_house, before + 3 + 16)
            for caller, num_errors in ((victim, 1), (other, 0)):
                taken, done = await commit_and_ask(caller)
                assert taken["frames"] >= MIN_FRAMES
                assert done["usage"]["input_token_details"]["image_tokens"] > 0
                assert [e["type"] for e in caller.heard].count("error") == num_errors
            assert real_house.figure(KILLS) == kills + 1

    asyncio.run(scene())
