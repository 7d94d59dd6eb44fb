"""Starting noise of the flow, addressed by absolute mel frame.

A value depends on (seed, frame, bin) and nothing else: not on where windows begin, not on what was
drawn before, not on the device. Otherwise grouping would change the voice.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

# Frames drawn together. Any number would do, but changing it changes every reply.
_BLOCK: Final = 24


class NoiseSource:
    """Standard normal noise of one reply; holds no memory beyond its seed."""

    __slots__ = ("mel_dim", "seed")

    def __init__(self, seed: int, mel_dim: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"noise seed {seed} must lie in 0…2^64-1")
        self.seed = seed
        self.mel_dim = mel_dim

    def frames(self, start: int, stop: int) -> Tensor:
        """Noise [stop - start, mel_dim] of mel frames start…stop-1, float32 on the CPU."""
        first = start // _BLOCK
        blocks = [self._block(b) for b in range(first, -(-stop // _BLOCK))]
        if not blocks:
            return torch.empty(0, self.mel_dim)
        return torch.cat(blocks)[start - first * _BLOCK : stop - first * _BLOCK]

    def _block(self, index: int) -> Tensor:
        bits = np.random.Philox(key=np.array([self.seed, index], dtype=np.uint64))
        drawn = np.random.Generator(bits).standard_normal((_BLOCK, self.mel_dim), dtype=np.float32)
        return torch.from_numpy(drawn)
