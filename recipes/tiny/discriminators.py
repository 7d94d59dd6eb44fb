"""Judges for the vocoder's adversarial phase: waveform folded by periods, and spectrograms. Never shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

PERIODS = (2, 3, 5, 7, 11)
STFT_SIZES = (512, 1024)
WIDTH = 16  # small: the adversary has to train on a CPU as well


class Verdict(NamedTuple):
    """One judge's map of scores (1 is real) and its inner feature maps."""

    score: Tensor
    features: list[Tensor]


class Judge(nn.Module):
    """A stack of strided 2-D convolutions."""

    def __init__(
        self, kernels: Sequence[tuple[int, int]], strides: Sequence[tuple[int, int]], width: int
    ) -> None:
        super().__init__()
        channels = [1, *(width * min(2**i, 4) for i in range(len(kernels)))]
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(channels[i], channels[i + 1], k, s, (k[0] // 2, k[1] // 2))
            )
            for i, (k, s) in enumerate(zip(kernels, strides, strict=True))
        )
        self.out = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> Verdict:
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return Verdict(self.out(x), features)


class Discriminators(nn.Module):
    """Period judges and spectrogram judges over waves [B, S]."""

    def __init__(self) -> None:
        super().__init__()
        self.by_period = nn.ModuleList(Judge([(5, 1)] * 4, [(3, 1)] * 4, WIDTH) for _ in PERIODS)
        self.by_spectrum = nn.ModuleList(
            Judge([(3, 9), (3, 9), (3, 9), (3, 3)], [(1, 2), (1, 2), (1, 2), (1, 2)], WIDTH // 2)
            for _ in STFT_SIZES
        )

    def forward(self, wave: Tensor) -> list[Verdict]:
        folded = [
            judge(_fold(wave, period))
            for judge, period in zip(self.by_period, PERIODS, strict=True)
        ]
        seen = [
            judge(_spectrum(wave, size))
            for judge, size in zip(self.by_spectrum, STFT_SIZES, strict=True)
        ]
        return folded + seen


def adversary_loss(real: list[Verdict], made: list[Verdict]) -> Tensor:
    """Least squares: real towards 1, made towards 0; mean over judges."""
    terms = [
        (1 - r.score).square().mean() + m.score.square().mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(terms).mean()


def generator_loss(real: list[Verdict], made: list[Verdict]) -> tuple[Tensor, Tensor]:
    """Return (how far made is from passing, distance of features), both means over judges."""
    fooled = torch.stack([(1 - m.score).square().mean() for m in made]).mean()
    pairs = [
        (a.detach(), b)
        for r, m in zip(real, made, strict=True)
        for a, b in zip(r.features, m.features, strict=True)
    ]
    # Relative to the feature's own size, so that no judge or layer outweighs another.
    distance = torch.stack(
        [F.l1_loss(b, a) / a.abs().mean().clamp(min=1e-4) for a, b in pairs]
    ).mean()
    return fooled, distance


def _fold(wave: Tensor, period: int) -> Tensor:
    wave = F.pad(wave, (0, -wave.shape[1] % period))
    return wave.reshape(wave.shape[0], 1, -1, period)


def _spectrum(wave: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)
    return (
        (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt().transpose(1, 2)[:, None]
    )  # [B, 1, T, F]
