"""Clips: recorded speech from files, at the rate the server is told, with the place where the speech ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from streaming.pcm import INT16, from_float
from streaming.resample import Resampler

if TYPE_CHECKING:
    from collections.abc import Iterable

SPEECH_DIR = Path(__file__).resolve().parent.parent / "speech"
SUFFIXES = (".flac", ".wav")
WINDOW_S = 0.01
QUIET_RATIO = 10 ** (-35 / 20)
"""A window this far below the loudest one is no longer speech."""


class ClipFault(ValueError):
    """A speech file cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """int16 mono speech without silence before and after.

    `pcm` ends where the speech ends: the moment its last sample is spoken is the zero of every latency.
    """

    name: str
    rate: int
    pcm: bytes

    @property
    def num_samples(self) -> int:
        return len(self.pcm) // 2

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.rate


def find_clips(names: Iterable[str], folder: Path = SPEECH_DIR) -> list[Path]:
    """Resolve names of a scenario: a file, or the beginning of file names in `folder` (`short` takes every short-*).

    Raises:
        ClipFault: nothing has that name; the message lists what there is.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.suffix in SUFFIXES:
            matching = [p for p in (path, folder / path) if p.is_file()][:1]
        else:
            matching = sorted(p for p in folder.glob(f"{name}*") if p.suffix in SUFFIXES)
        if not matching:
            there = ", ".join(sorted(p.name for p in folder.glob("*") if p.suffix in SUFFIXES))
            raise ClipFault(f"no speech named {name!r}; {folder} has: {there or 'nothing'}")
        found += matching
    return list(dict.fromkeys(found))


def load_clip(path: Path, rate: int) -> Clip:
    """Read, mix to mono, resample, and cut the silence at both ends.

    Raises:
        ClipFault: unreadable, or nothing is spoken in it.
    """
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as fault:
        raise ClipFault(f"{path}: {fault}") from None
    mono = samples.mean(axis=1, dtype=np.float32)
    start, end = speech_span(mono, file_rate)
    if start == end:
        raise ClipFault(f"{path}: nothing but silence")
    resampler = Resampler(file_rate, rate)
    spoken = np.frombuffer(from_float(mono[start:end]), INT16)
    resampled = np.concatenate((resampler.push(spoken), resampler.flush()))
    return Clip(path.stem, rate, resampled.astype(INT16).tobytes())


def speech_span(
    samples: np.ndarray[tuple[int], np.dtype[np.float32]], rate: int
) -> tuple[int, int]:
    """Half-open range of samples from the first to the last window of 10 ms that is loud enough for speech."""
    size = max(1, round(WINDOW_S * rate))
    num_windows = len(samples) // size
    if num_windows == 0:
        return 0, 0
    windows = samples[: num_windows * size].reshape(num_windows, size)
    level = np.sqrt(np.mean(windows.astype(np.float64) ** 2, axis=1))
    loud = np.flatnonzero(level > max(level.max() * QUIET_RATIO, 1e-5))
    return (0, 0) if len(loud) == 0 else (int(loud[0]) * size, (int(loud[-1]) + 1) * size)
