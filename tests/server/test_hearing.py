"""Speech detection between the loop and its thread."""

from __future__ import annotations

import asyncio

import pytest

from server.hearing import Hearing
from streaming.silero import SpeechModel, SpeechProgress, model_path
from streaming.vad import WINDOW_SAMPLES, VadSettings

WINDOW = bytes(2 * WINDOW_SAMPLES)


@pytest.fixture(scope="module")
def model() -> SpeechModel:
    return SpeechModel(model_path())


class Listener:
    def __init__(self) -> None:
        self.until = 0
        self.changed = asyncio.Event()

    def receive_speech(self, progress: SpeechProgress) -> None:
        self.until = progress.until_sample
        self.changed.set()

    async def reached(self, sample: int) -> None:
        async with asyncio.timeout(5):
            while self.until < sample:
                self.changed.clear()
                await self.changed.wait()


def test_each_session_hears_of_its_own_sound_in_the_loop(model: SpeechModel) -> None:
    async def scene() -> None:
        hearing = Hearing(model, asyncio.get_running_loop())
        hearing.start()
        ears = {name: Listener() for name in "abc"}
        for n, (name, ear) in enumerate(ears.items(), 1):
            hearing.hear(name, ear, [VadSettings(), WINDOW * n, VadSettings(threshold=0.6)])
        for n, ear in enumerate(ears.values(), 1):
            await ear.reached(n * WINDOW_SAMPLES)
        assert [ear.until for ear in ears.values()] == [512, 1024, 1536]
        assert hearing.backlog_bytes("a") == 0
        hearing.hear("a", ears["a"], [100, WINDOW[:500]])
        assert hearing.backlog_bytes("a") == 500
        assert hearing.longest_backlog_samples() == 250
        hearing.close("a")
        hearing.close("a")
        assert hearing.backlog_bytes("a") == 0
        hearing.stop()

    asyncio.run(scene())


def test_without_settings_nothing_is_heard(model: SpeechModel) -> None:
    async def scene() -> None:
        hearing = Hearing(model, asyncio.get_running_loop())
        hearing.hear("a", Listener(), [WINDOW, 17])
        assert hearing.backlog_bytes("a") == 0 and hearing.longest_backlog_samples() == 0

    asyncio.run(scene())


def test_answers_for_who_has_left_and_for_a_loop_that_has_ended_are_dropped(
    model: SpeechModel,
) -> None:
    async def scene() -> tuple[Hearing, Listener]:
        hearing, ear = Hearing(model, asyncio.get_running_loop()), Listener()
        hearing.hear("a", ear, [VadSettings()])
        hearing._deliver("a", SpeechProgress(1, ()))
        hearing._deliver("a", SpeechProgress(2, ()))
        hearing.close("a")
        await asyncio.sleep(0)
        return hearing, ear

    hearing, ear = asyncio.run(scene())
    assert ear.until == 0
    hearing._deliver("a", SpeechProgress(3, ()))  # the loop is closed
