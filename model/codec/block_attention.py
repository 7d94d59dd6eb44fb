"""Attention in neighbourhoods of blocks: which keys a query sees, and where they stand.

No mask is built: the queries of all blocks that see equally many keys are one batch of small
attentions, so cost grows linearly with length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROPE_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """Neighbouring query blocks whose key neighbourhoods have one size; lengths in mel frames.

    Block i of the run asks with frames `query_start + i * num_queries` onwards, and sees `num_keys`
    keys from `key_start + i * num_queries`. Keys count from the start of the past block where there
    is one.
    """

    query_start: int
    num_blocks: int
    num_queries: int
    key_start: int
    num_keys: int


def attention_runs(
    num_frames: int, block: int, back: int, ahead: int, past: int = 0
) -> tuple[AttentionRun, ...]:
    """Split the queries of `num_frames` frames into runs, each one batched attention.

    Args:
        back, ahead: how many blocks before and after its own a query sees.
        past: frames of remembered keys in front of frame 0, a multiple of `block`.
    """
    runs: list[AttentionRun] = []
    for start in range(0, num_frames, block):
        stop = min(start + block, num_frames)
        first_key = max(start - back * block, -past)
        last_key = min(start + (1 + ahead) * block, num_frames)
        run = AttentionRun(start, 1, stop - start, first_key + past, last_key - first_key)
        if runs and _continues(runs[-1], run):
            last = runs.pop()
            run = replace(last, num_blocks=last.num_blocks + 1)
        runs.append(run)
    return tuple(runs)


def _continues(run: AttentionRun, following: AttentionRun) -> bool:
    same_size = (run.num_queries, run.num_keys) == (following.num_queries, following.num_keys)
    return same_size and following.key_start == run.key_start + run.num_blocks * run.num_queries


def attend(q: Tensor, kv: Tensor, runs: Sequence[AttentionRun]) -> Tensor:
    """Attention within neighbourhoods.

    Args:
        q: [N, T, H, D], rotated.
        kv: keys and values [N, past + T, 2, H, D], keys rotated.

    Returns:
        [N, T, H·D]
    """
    num_rows = q.shape[0]
    outputs = []
    for run in runs:
        query_stop = run.query_start + run.num_blocks * run.num_queries
        key_stop = run.key_start + (run.num_blocks - 1) * run.num_queries + run.num_keys
        seen = kv[:, run.key_start : key_stop]
        if run.num_keys != run.num_queries:  # neighbourhoods overlap: [N, blocks, keys, 2, H, D]
            seen = seen.unfold(1, run.num_keys, run.num_queries).movedim(-1, 2)
        asking = q[:, run.query_start : query_stop].reshape(-1, run.num_queries, *q.shape[2:])
        seen = seen.reshape(-1, run.num_keys, *kv.shape[2:])
        asking = asking.transpose(1, 2)  # [N·blocks, H, queries, D]
        keys, values = seen.transpose(1, 3).unbind(2)  # [N·blocks, H, keys, D] each
        answer = F.scaled_dot_product_attention(asking, keys, values)
        outputs.append(answer.transpose(1, 2).reshape(num_rows, query_stop - run.query_start, -1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotations [T, D / 2] of neighbouring positions, as complex numbers."""

    turn: Tensor

    @classmethod
    def of(cls, start: int, stop: int, head_dim: int, device: torch.device) -> Rotary:
        """Rotations of positions start…stop-1."""
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        positions = torch.arange(start, stop, dtype=torch.float32, device=device)
        angles = positions[:, None] * _ROPE_THETA ** -(pairs / head_dim)
        return cls(torch.polar(torch.ones_like(angles), angles))

    def from_frame(self, start: int) -> Rotary:
        return Rotary(self.turn[start:])

    def rotate_(self, x: Tensor) -> None:
        """Rotate interleaved pairs of `x` [N, T, parts, D] in place."""
        turn = self.turn[:, None]
        if x.dtype == torch.float32:
            torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turn)
            return
        cos, sin = turn.real, turn.imag
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        x.copy_(rotated.flatten(-2))


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a window's shape alone decides, computed once for all evaluations and layers."""

    runs: dict[tuple[int, int], tuple[AttentionRun, ...]]  # by (blocks back, blocks ahead)
    rotary: Rotary  # of frames 0…T-1
    rotary_with_past: Rotary  # of frames -past…T-1
