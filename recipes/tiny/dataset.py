"""All finished shards in memory, cut into training segments or whole kept-out utterances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recipes.tiny.mel import EDGE, HOP, SAMPLE_RATE, log_mel
from recipes.tiny.speech import Utterance, finished_shards, read_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KEPT_OUT_SHARD = 0
VOICE_NAMES = ("joe", "gongitsune")
ALIKE = 6  # a batch of whole clips is the n-th part of so many drawn, ordered by length


@dataclass(frozen=True)
class Clip:
    """One utterance: its text, its voice and where its sound lies in memory."""

    text: str
    voice: int
    pcm: NDArray[np.int16]

    @property
    def num_frames(self) -> int:
        return len(self.pcm) // HOP

    def wave(self) -> Tensor:
        """Samples in [-1, 1], cut to whole mel frames."""
        return to_wave(self.pcm[: self.num_frames * HOP])

    def mel(self) -> Tensor:
        """Log-mel [T, M], float32; computed once and kept in half precision."""
        return self._mel.float()

    @cached_property
    def _mel(self) -> Tensor:
        return log_mel(self.wave()).half()


class Speech:
    """The speech of several voices; `train` and `kept_out` never share a shard."""

    def __init__(self, folder: Path, voices: Sequence[str] = VOICE_NAMES) -> None:
        self.train: list[Clip] = []
        self.kept_out: list[Clip] = []
        for voice in voices:
            for shard in finished_shards(folder, voice):
                clips = self.kept_out if shard == KEPT_OUT_SHARD else self.train
                pcm, utterances = read_shard(folder, voice, shard)
                clips.extend(_clips(pcm, utterances, VOICE_NAMES.index(voice)))
        if not self.train:
            raise ValueError(f"{folder} holds no training shard; run recipes.tiny.speech first")
        lengths = np.array([len(clip.pcm) for clip in self.train], np.float64)
        # Voices are drawn equally often, however much of each has been generated so far.
        owner = np.array([clip.voice for clip in self.train])
        share = np.array([lengths[owner == v].sum() for v in range(len(VOICE_NAMES))])
        self._odds = lengths / share[owner] / len(set(owner))

    @property
    def seconds(self) -> float:
        return sum(len(clip.pcm) for clip in self.train) / SAMPLE_RATE

    def pick(self, rng: np.random.Generator, count: int) -> list[Clip]:
        """Draw training clips, longer ones in proportion."""
        return [self.train[i] for i in rng.choice(len(self.train), count, p=self._odds)]

    def pick_alike(self, rng: np.random.Generator, count: int) -> list[Clip]:
        """Draw training clips of nearly one length, so that a batch of whole clips is hardly padded."""
        drawn = sorted(self.pick(rng, ALIKE * count), key=lambda clip: len(clip.pcm))
        first = int(rng.integers(ALIKE)) * count
        return drawn[first : first + count]

    def segments(
        self, rng: np.random.Generator, count: int, frames: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` cuts: waves [B, frames · HOP], their mel as it is in the clip [B, frames, M], voices [B]."""
        cuts, clips = [], self.pick(rng, count)
        for clip in clips:
            # Silence around the clip keeps the first and last frames among the cuts.
            padded = np.pad(clip.pcm, (EDGE, EDGE + max(0, frames * HOP - len(clip.pcm))))
            start = rng.integers(0, max(1, len(clip.pcm) - frames * HOP + 1))
            cuts.append(to_wave(padded[start : start + frames * HOP + 2 * EDGE]))
        wave = torch.stack(cuts)
        voices = torch.tensor([clip.voice for clip in clips])
        return wave[:, EDGE:-EDGE], log_mel(wave, has_edges=True), voices


def to_wave(pcm: NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(pcm.astype(np.float32) / 32768)


def _clips(pcm: NDArray[np.int16], utterances: list[Utterance], voice: int) -> Iterator[Clip]:
    for item in utterances:
        yield Clip(item.text, voice, pcm[item.start_sample : item.start_sample + item.num_samples])
