"""Speech to feed the page and to answer with, made on the spot by whatever synthesiser the machine has."""

from __future__ import annotations

import shutil
import subprocess
import wave
from functools import cache
from pathlib import Path

import numpy as np
import soxr

FALLBACK = Path(__file__).parents[1] / "streaming" / "one_two_three.wav"


@cache
def say(text: str, rate: int, voice: str = "en-us") -> np.ndarray:
    """Speak `text` as int16 mono at `rate`; without a synthesiser a recorded voice counts, about as long."""
    if shutil.which("espeak-ng"):
        command = ["espeak-ng", "-v", voice, "-s", "165", "--stdout", text]
        sound = subprocess.run(command, check=True, capture_output=True).stdout
        # The header of a piped WAV does not know its length.
        source_rate = int.from_bytes(sound[24:28], "little")
        samples = np.frombuffer(sound[44 : len(sound) // 2 * 2], "<i2")
    else:
        source_rate, samples = _recorded(len(text))
    heard = np.flatnonzero(np.abs(samples.astype(np.int32)) > 500)
    spoken = samples[heard[0] : heard[-1] + 1].astype(np.float32) / 32768
    spoken *= 0.5 / np.abs(spoken).max()
    return (np.clip(soxr.resample(spoken, source_rate, rate), -1, 1) * 32767).astype(np.int16)


def _recorded(num_letters: int) -> tuple[int, np.ndarray]:
    import soundfile

    once, rate = soundfile.read(FALLBACK, dtype="int16")
    seconds = num_letters / 15
    return rate, np.tile(once, max(1, round(seconds * rate / len(once))))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path
