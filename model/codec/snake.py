"""Anti-aliased snake: the vocoder's activation, in a plain form and in a fast one that is the same.

A snake bends the spectrum upwards, so it runs at twice the rate, between two low-pass filters:

    x ── up (12 taps, rate × 2) ── y + sin²(e^α y) / (e^β + 1e-9) ── down (12 taps, rate / 2) ── z

As depthwise convolutions the filters cost more than everything else in a narrow vocoder. The fast
form cuts time into blocks of 16 samples and applies a filter to a block as one small matrix: more
multiplications, but all of them in one dense product over every channel and block.

    up      [22 samples] @ [22, 32]    the block, 3 samples before it and 3 after it
    down    [42 samples] @ [42, 16]    the block at twice the rate, 5 before it and 5 after
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_TAPS = 12
BLOCK = 16  # of 8, 16 and 32 the fastest at every width
UP_HALO = 3
DOWN_HALO = 5
REACH = 5  # input samples on either side that one output sample depends on


class SnakeFilters(NamedTuple):
    """Both filters as block matrices."""

    up: Tensor  # [BLOCK + 2 · UP_HALO, 2 · BLOCK]
    down: Tensor  # [2 · BLOCK + 2 · DOWN_HALO, BLOCK]

    @classmethod
    def build(cls, dtype: torch.dtype, device: torch.device) -> SnakeFilters:
        exact = torch.float64
        up = torch.zeros(BLOCK + 2 * UP_HALO, 2 * BLOCK, dtype=exact, device="cpu")
        down = torch.zeros(2 * BLOCK + 2 * DOWN_HALO, BLOCK, dtype=exact, device="cpu")
        taps = antialias_taps()
        for i in range(BLOCK):
            for phase, first in ((0, 11), (1, 10)):  # even outputs see odd taps
                for j in range(6):
                    up[i + phase + j, 2 * i + phase] = 2 * taps[first - 2 * j]
            for k, tap in enumerate(taps):
                down[2 * i + k, i] = tap
        return cls(up.to(device, dtype), down.to(device, dtype))


class SnakeBeta(nn.Module):
    """x + sin²(e^α x) / (e^β + 1e-9) per channel; α and β are stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def scales(self) -> tuple[Tensor, Tensor]:
        """Frequency and magnitude, each [C, 1]."""
        return self.alpha.exp()[:, None], 1.0 / (self.beta.exp()[:, None] + 1e-9)

    def forward(self, x: Tensor) -> Tensor:
        frequency, magnitude = self.scales()
        return x + magnitude * (x * frequency).sin().square()


class AntiAliasedSnake(nn.Module):
    """Snake at twice the rate, between an up- and a down-sampling filter, on [B, C, T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self._scales: tuple[Tensor, Tensor] | None = None

    def prepare(self) -> None:
        """Keep what derives from the weights; used outside of training mode."""
        frequency, magnitude = self.act.scales()
        self._scales = frequency.detach(), magnitude.detach()

    def forward(self, x: Tensor, filters: SnakeFilters | None) -> Tensor:
        """Without `filters`, take the plain way."""
        return self._plain(x) if filters is None else self._by_blocks(x, filters)

    def _plain(self, x: Tensor) -> Tensor:
        taps = torch.tensor(antialias_taps(), dtype=x.dtype, device=x.device)
        taps = taps.expand(x.shape[1], 1, -1)
        x = F.pad(x, (5, 5), mode="replicate")
        x = 2 * F.conv_transpose1d(x, taps, stride=2, groups=x.shape[1])[..., 15:-15]
        # 5 before, 6 after: an even filter has no centre.
        x = F.pad(self.act(x), (5, 6), mode="replicate")
        return F.conv1d(x, taps, stride=2, groups=x.shape[1])

    def _by_blocks(self, x: Tensor, filters: SnakeFilters) -> Tensor:
        time = x.shape[2]
        up = _blocks(x, UP_HALO, BLOCK) @ filters.up  # [B, C, N, 2 · BLOCK]
        y = self._snake(up.flatten(2))  # [B, C, N · 2 · BLOCK], of which 2 T are signal
        down = _blocks(y[..., : 2 * time], DOWN_HALO, 2 * BLOCK) @ filters.down
        return down.flatten(2)[..., :time]

    def _snake(self, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.act(y)  # type: ignore[no-any-return]  # modules return Any
        if self.training or self._scales is None:
            frequency, magnitude = self.act.scales()
        else:
            frequency, magnitude = self._scales
        wave = (y * frequency).sin_()
        return y.addcmul_(wave.mul_(wave), magnitude)


def antialias_taps() -> tuple[float, ...]:
    """Return the half-band low-pass: a Kaiser-windowed sinc of cutoff 1/4 whose taps sum to one."""
    attenuation = 2.285 * 5 * math.pi * (4 * 0.3) + 7.95
    beta = 0.1102 * (attenuation - 8.7)
    cpu, exact = torch.device("cpu"), torch.float64
    window = torch.kaiser_window(NUM_TAPS, periodic=False, beta=beta, dtype=exact, device=cpu)
    time = torch.arange(NUM_TAPS, dtype=exact, device=cpu) - (NUM_TAPS - 1) / 2
    taps = window * torch.sinc(0.5 * time)
    return tuple((taps / taps.sum()).tolist())


def _blocks(x: Tensor, halo: int, block: int) -> Tensor:
    """Cut [B, C, T] into blocks that overlap by twice `halo`, the ends replicated: [B, C, N, …]."""
    behind = block - halo + -x.shape[2] % block
    ends = x[..., :1].expand(-1, -1, halo), x[..., -1:].expand(-1, -1, behind)
    padded = torch.cat((ends[0], x, ends[1]), -1)
    rows = padded.view(*x.shape[:2], -1, block)
    return torch.cat((rows[:, :, :-1], rows[:, :, 1:, : 2 * halo]), -1)
