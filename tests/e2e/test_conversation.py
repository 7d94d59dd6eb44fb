"""A conversation with a real worker process: spoken, typed, and through the worker's death."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streaming.pcm import Encoding, SoundFormat, SoundReader, read_wav
from tests.e2e.house import stale_events

if TYPE_CHECKING:
    from tests.e2e.house import House

VOICE = Path(__file__).parents[1] / "streaming" / "one_two_three.wav"


def spoken(rate: int = 16_000) -> bytes:
    """The question, at 16 kHz."""
    pcm, file_rate = read_wav(VOICE.read_bytes())
    assert rate == 16_000
    reader = SoundReader(SoundFormat(Encoding.PCM16, file_rate))
    return reader.push(pcm) + reader.flush()


# Random weights end most replies early; after these instructions they speak.
TALKATIVE = {
    "instructions": "Hello",
    "max_output_tokens": 24,
    "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}},
}


def test_a_spoken_turn_is_transcribed_in_sound_and_text(real_house: House) -> None:
    async def scene() -> None:
        async with real_house.call() as caller:
            assert (await caller.next())["type"] == "session.created"
            await caller.configure(**TALKATIVE)
            pcm = spoken() + bytes(2 * 16_000)
            for start in range(0, len(pcm), 3200):
                await caller.append(pcm[start : start + 3200])
            done = (await caller.until("response.done"))["response"]
            kinds = [event["type"] for event in caller.heard]
            order = [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "response.created",
                "response.output_audio.delta",
                "response.output_audio.done",
                "response.done",
            ]
            assert [kinds.index(kind) for kind in order] == sorted(kinds.index(k) for k in order)
            assert done["status"] in ("completed", "incomplete")
            assert caller.text_heard()
            usage = done["usage"]
            assert usage["input_token_details"]["audio_tokens"] > 20
            assert 2 * 480 <= len(caller.sound_heard()) <= 2 * 480 * 120

    asyncio.run(scene())


def test_a_typed_turn_is_answered_and_counted(real_house: House) -> None:
    async def scene() -> None:
        before = real_house.figure("parley_first_sound_seconds_count")
        async with real_house.call() as caller:
            await caller.configure(**TALKATIVE)
            first = await caller.ask("Say hello.")
            second = await caller.ask("And again.")
            assert {first["status"], second["status"]} <= {"completed", "incomplete"}
            assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
            cached = second["usage"]["input_token_details"]["cached_tokens"]
            assert cached >= first["usage"]["input_tokens"] - 16  # to the page
            assert caller.sound_heard()
        assert real_house.figure("parley_first_sound_seconds_count") == before + 2

    asyncio.run(scene())


def test_f1_a_killed_worker_costs_one_reply_and_nothing_else(real_house: House) -> None:
    async def scene() -> None:
        deaths = real_house.figure("parley_worker_deaths_total")
        async with real_house.call() as caller, real_house.call() as idle:
            await idle.configure(**TALKATIVE)
            await caller.type("Tell me a long story.")
            await caller.send("response.create")
            for _ in range(3):
                await caller.until("response.output_audio_transcript.delta")
            victim = real_house.worker_pid
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            done = (await caller.until("response.done"))["response"]
            assert time.monotonic() - killed < 0.5
            assert done["status"] == "failed"
            assert done["status_details"]["error"]["code"] == "server_error"
            assert real_house.http("/readyz")[0] == 503
            num_heard = len(caller.heard)
            await caller.configure(max_output_tokens=24)
            again = await asyncio.wait_for(caller.ask("Are you there?"), 60)
            assert again["status"] in ("completed", "incomplete")
            late = [e for e in caller.heard[num_heard:] if e.get("response_id") == done["id"]]
            assert late == []  # nothing of the lost reply follows
            # What was said before is still known: the new worker was told all of it.
            fresh = await idle.ask("Are you there?")
            assert again["usage"]["input_tokens"] > fresh["usage"]["input_tokens"]
        assert real_house.figure("parley_worker_deaths_total") == deaths + 1
        assert real_house.worker_pid != victim
        assert real_house.http("/readyz")[0] == 200

    asyncio.run(scene())


def test_f33_a_storm_of_interruptions_leaves_no_page_taken(real_house: House) -> None:
    """By speech; a context of 2 048 tokens holds ten such turns."""

    async def scene() -> list[str]:
        said = spoken()[:25_600] + bytes(25_600)
        async with real_house.call() as caller:
            await caller.configure(**TALKATIVE | {"max_output_tokens": 200})
            for _ in range(10):
                await caller.speak(said)
                await caller.until("response.created")
                await caller.until("response.output_audio_transcript.delta")
            await caller.speak(said)
            await caller.until("response.done")
            assert stale_events(caller.heard) == []
            return [e["response"]["status"] for e in caller.heard if e["type"] == "response.done"]

    asyncio.run(scene())  # whose prompt's pages stay for the next session
    real_house.wait_until(lambda: real_house.figure("parley_sessions") == 0)
    time.sleep(1.1)  # the worker tells its figures once a second
    before = real_house.figure("parley_worker_pages_free")
    statuses = [status for _ in range(5) for status in asyncio.run(scene())]
    assert statuses.count("cancelled") >= 25  # the others were said before the interruption came
    real_house.wait_until(lambda: real_house.figure("parley_worker_pages_free") == before, 5)
    assert real_house.figure("parley_session_faults_total") == 0


@pytest.mark.parametrize("num_sessions", [4])
def test_sessions_beyond_the_places_are_refused_and_places_come_back(
    real_house: House, num_sessions: int
) -> None:
    from websockets.exceptions import InvalidStatus

    async def scene() -> None:
        places = int(real_house.figure("parley_places"))
        assert places == 3  # of four lanes one is left to transcripts
        calls = [real_house.call() for _ in range(places)]
        callers = [await call.__aenter__() for call in calls]
        with pytest.raises(InvalidStatus) as refused:
            async with real_house.call():
                pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"]
        await asyncio.gather(*(caller.ask("Hello") for caller in callers))
        for call in calls:
            await call.__aexit__(None, None, None)
        real_house.wait_until(lambda: real_house.figure("parley_sessions") == 0)
        async with real_house.call() as caller:
            await caller.until("session.created")

    asyncio.run(scene())
