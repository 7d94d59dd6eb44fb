"""Logits to tokens, without a device sync and without a shared random generator.

Processor order, checked against the reference: repetition penalty, suppressed ids, temperature, top-k, top-p.
Randomness is one uniform number per drawn token, a pure function of the reply's seed and the step, so a reply does not
depend on who else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one reply draws its tokens. Temperature 0 is greedy.

    Raises:
        ValueError: a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature {self.temperature} must be between 0 (greedy) and 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k} must be 0 (keep all) or positive")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} must be positive")


GREEDY = Sampling(temperature=0.0)
TALKER_SAMPLING = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
"""Defaults of the published checkpoints' Talker."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Settings of every sequence in a step, as tensors: one copy to the device."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    repetition_penalty: Tensor
    uniform: Tensor
    """One draw in [0, 1) per sequence."""
    all_greedy: bool

    @classmethod
    def pack(
        cls, settings: Sequence[Sampling], steps: Sequence[int], device: torch.device
    ) -> SamplingBatch:
        """`steps` counts the tokens each reply has drawn so far."""
        uniforms = [uniform(s.seed, n) for s, n in zip(settings, steps, strict=True)]
        rows = [
            (s.temperature, float(s.top_k), s.top_p, s.repetition_penalty, u)
            for s, u in zip(settings, uniforms, strict=True)
        ]
        columns = torch.tensor(rows, dtype=torch.float64).T.to(device)
        return cls(
            temperature=columns[0].float(),
            top_k=columns[1].long(),
            top_p=columns[2].float(),
            repetition_penalty=columns[3].float(),
            uniform=columns[4],
            all_greedy=all(s.temperature == 0 for s in settings),
        )


def sample(
    logits: Tensor, batch: SamplingBatch, seen: Tensor | None, suppressed: Tensor | None = None
) -> Tensor:
    """Draw one token per row.

    Args:
        logits: [B, V] float32.
        batch: settings per row.
        seen: bool [B, V], ids the repetition penalty applies to (prompt and reply); None for no penalty.
        suppressed: bool [V], ids that may never be drawn.

    Returns:
        int64 [B].
    """
    if seen is not None:
        logits = penalise(logits, seen, batch.repetition_penalty)
    if suppressed is not None:
        logits = logits.masked_fill(suppressed, float("-inf"))
    greedy = logits.argmax(dim=-1)
    if batch.all_greedy:
        return greedy
    return torch.where(batch.temperature == 0, greedy, _draw(logits, batch))


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive logits of seen ids by the penalty, multiply negative ones."""
    p = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / p, logits * p), logits)


def _draw(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Inverse-CDF draw from the kept head of the sorted distribution."""
    scaled = logits / batch.temperature.clamp(min=1e-5)[:, None]
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    vocab = logits.shape[-1]
    rank = torch.arange(vocab, device=logits.device)
    kept = torch.where(batch.top_k > 0, batch.top_k, vocab).clamp(max=vocab)
    # The reference keeps every id tied with the k-th; so a threshold, not a rank.
    threshold = ordered.gather(1, (kept - 1)[:, None])
    ordered = ordered.masked_fill(ordered < threshold, float("-inf"))
    probs = ordered.softmax(dim=-1, dtype=torch.float64)
    before = probs.cumsum(dim=-1) - probs
    probs = probs.masked_fill((before >= batch.top_p[:, None].double()) & (rank > 0), 0)
    cdf = probs.cumsum(dim=-1)
    target = batch.uniform[:, None] * cdf[:, -1:]
    choice = (cdf <= target).sum(dim=-1, keepdim=True).clamp(max=vocab - 1)
    return ids.gather(1, choice)[:, 0]


_MASK = (1 << 64) - 1


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on the seed and the step alone (SplitMix64, 53 bits)."""
    state = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return float((state ^ (state >> 31)) >> 11) / float(1 << 53)
