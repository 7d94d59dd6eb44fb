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


TYPED = (
    "What is 5 plus 3?",
    "How are you?",
    "What is the capital of France?",
    "Is grass green?",
    "What is a hammer?",
    "What comes after Monday?",
)


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


def test_spoken_questions_are_answered_aloud(tiny_house: House) -> None:
    """Another processor rounds otherwise, so it draws other codes: one reply alone may be a mumble."""
    right, replies = 0, []
    for name, wanted in ANSWERS:
        caption, sound = asyncio.run(hold(tiny_house, spoken(name)))
        heard = whisper().transcribe(sound, RATE)
        right += wanted in heard.lower()
        replies.append((caption, heard))
    assert right > len(ANSWERS) / 2, replies


def test_the_sound_says_its_captions(tiny_house: House) -> None:
    """Typed, so that hearing has no part in it: most words of the captions are heard."""

    async def turns() -> list[tuple[str, Sound]]:
        made = []
        for asked in TYPED:
            async with tiny_house.call() as caller:
                await caller.ask(asked)
                made.append((caller.text_heard(), pcm(caller.sound_heard())))
        return made

    from recipes.tiny.listen import word_errors

    pairs = [(said, whisper().transcribe(sound, RATE)) for said, sound in asyncio.run(turns())]
    assert word_errors(pairs).rate < 0.5, pairs
