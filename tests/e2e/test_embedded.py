"""The embedded checkpoint in a real conversation: a spoken question comes back as speech that says the answer.

The judge is Whisper tiny.en; it hears nothing but the sound that a client would play.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.e2e.embedded import (
    ANSWERS,
    CHECKPOINT,
    RATE,
    Sound,
    question,
    require_checkpoint,
    whisper,
)
from tests.e2e.house import House

if TYPE_CHECKING:
    from collections.abc import Iterator

require_checkpoint()


@pytest.fixture(scope="module")
def tiny_house() -> Iterator[House]:
    made = House(["--max-text-tokens", "60", "--max-codes", "400"], model=CHECKPOINT)
    try:
        yield made.wait_ready()
    finally:
        made.close()


def spoken(name: str) -> bytes:
    """A recorded question as PCM16 at 24 kHz, and a second of silence."""
    return np.concatenate([question(name), np.zeros(RATE, np.int16)]).tobytes()


def pcm(sound: bytes) -> Sound:
    return np.frombuffer(sound, "<i2").astype(np.float32) / 32768


async def hold(house: House, question: bytes) -> tuple[str, Sound]:
    """One hands-free turn: the reply's caption and its sound."""
    async with house.call() as caller:
        for at in range(0, len(question), 4800):
            await caller.append(question[at : at + 4800])
        done = await caller.until("response.done")
        assert done["response"]["status"] == "completed", done
        return caller.text_heard(), pcm(caller.sound_heard())


@pytest.mark.parametrize(("name", "wanted"), ANSWERS)
def test_a_spoken_question_is_answered_aloud(tiny_house: House, name: str, wanted: str) -> None:
    caption, sound = asyncio.run(hold(tiny_house, spoken(name)))
    heard = whisper().transcribe(sound, RATE)
    assert wanted in heard.lower(), f"said {caption!r}, heard as {heard!r}"


def test_the_sound_says_its_caption(tiny_house: House) -> None:
    """Typed, so that hearing has no part in it: most words of the caption are heard."""

    async def turn() -> tuple[str, Sound]:
        async with tiny_house.call() as caller:
            await caller.ask("What is 5 plus 3?")
            return caller.text_heard(), pcm(caller.sound_heard())

    caption, sound = asyncio.run(turn())
    from recipes.tiny.listen import word_errors

    heard = whisper().transcribe(sound, RATE)
    assert word_errors([(caption, heard)]).rate < 0.5, (caption, heard)
