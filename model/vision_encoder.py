"""Vision encoder: patches of frame pairs to rows, any number of pairs of any sizes in one call.

A frame pair (one second at two frames per second) never looks at another one, so it is the unit of
streaming and pairs of many sessions share a batch. Inside a pair most layers attend within windows
of 112 px (4 x 4 rows, 64 patches), smaller at the right and bottom edges; a few attend over the
whole pair.

No masks and no padding: patches are computed in an order where windows of one length lie side by
side, whichever pair they belong to, so each length is one dense call.

    a pair of 5 x 6 rows          computed as           one call each
    A A A A B B                   A                     [1, 64]
    A A A A B B                   B                     [1, 32]
    A A A A B B                   C                     [1, 16]
    A A A A B B                   D                     [1, 8]
    C C C C D D

Layers over whole pairs regroup the patches and put them back; with a single pair there is nothing
to regroup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image import PUBLISHED, Grid, ImageSettings, Patches, normalize
from model.rope import rotate, rotation_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import VisionConfig

NORM_EPS = 1e-6
ROPE_THETA = 10_000.0
# Bounds of the plans one encoder keeps; a patch takes about 350 bytes at the published head size.
MAX_PLANS = 64
MAX_PLANNED_PATCHES = 2**17

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """A partition of the patches into spans that attend within themselves.

    `runs` are (number of spans, patches in each), one behind the other. `gather` is the order of
    rows that brings the runs about, `scatter` its inverse; None means the order of computing.
    """

    runs: tuple[tuple[int, int], ...]
    gather: Tensor | None = None
    scatter: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VisionPlan:
    """Where everything lies while a batch of frame pairs is computed; its grids alone decide it."""

    order: Tensor  # [rows] the caller's index of each row, in the order of computing
    inverse: Tensor  # [rows] back again
    cos: Tensor  # [N, 1, D] float32, factors for `rotate`
    sin: Tensor
    windows: Spans
    pairs: Spans
    num_patches: int


class VisionEncoder(nn.Module):
    """Patches to rows. `forward` is the whole of it; `encode_pairs` takes what `model.image` makes.

    Plans are built on the host the first time that a combination of grids is seen and kept in
    `plans`, newest last, within the bounds above. A call whose plan is kept copies nothing to the
    device and can be captured in a CUDA graph; whoever captures it must hold on to the plan too.
    """

    def __init__(self, config: VisionConfig, settings: ImageSettings = PUBLISHED) -> None:
        super().__init__()
        self.config = config
        self.settings = settings
        self.plans: dict[tuple[torch.device, tuple[Grid, ...]], VisionPlan] = {}
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Encode frame pairs that lie one behind the other.

        Args:
            patches: normalised levels [N, patch_dim] in the order of `model.image`, any float type.
            grids: of each pair. Sides must be multiples of `spatial_merge_size`.

        Returns:
            [N / spatial_merge_size², out_hidden_size], pair by pair, rows of a pair from left to
            right and top to bottom.

        Raises:
            ValueError: `patches` do not fit `grids`.
        """
        self._check(patches, grids)
        if not grids:
            return patches.new_zeros(
                (0, self.config.out_hidden_size), dtype=self.patch_embed.proj.weight.dtype
            )
        plan = self.plan(grids, patches.device)
        x = _reorder(self.patch_embed(patches), plan.order)
        for i, block in enumerate(self.blocks):
            spans = plan.pairs if i in self.config.fullatt_block_indexes else plan.windows
            x = block(x, spans, plan.cos, plan.sin)
        rows: Tensor = self.merger(x)
        return rows[plan.inverse]

    def encode_pairs(self, pairs: Sequence[Patches]) -> list[Tensor]:
        """Encode frame pairs of any sizes, from any sessions, together.

        Returns:
            For each pair [num_rows(grid), out_hidden_size], on the device of the weights.

        Raises:
            ValueError: a pair was cut for another patch size.
        """
        if not pairs:
            return []
        grids = [p.grid for p in pairs]
        values = torch.cat([p.values for p in pairs]).to(self.patch_embed.proj.weight.device)
        rows = self(normalize(values, self.settings), grids)
        return list(rows.split([self.num_rows(grid) for grid in grids]))

    def num_rows(self, grid: Grid) -> int:
        """Rows (placeholders in the Thinker's prompt) of one frame pair."""
        return int(grid.num_patches // self.config.spatial_merge_size**2)

    def plan(self, grids: Sequence[Grid], device: torch.device) -> VisionPlan:
        """Return the plan of this combination of grids, building it if it is new."""
        key = (device, tuple(grids))
        plan = self.plans.pop(key, None)
        if plan is None:
            # A plan outlives the call that made it, and one made under inference_mode could not be
            # trained with.
            with torch.inference_mode(False), torch.no_grad():
                plan = build_plan(grids, self.config, device)
        self.plans[key] = plan
        while len(self.plans) > 1 and self._too_many_plans():
            del self.plans[next(iter(self.plans))]
        return plan

    def _too_many_plans(self) -> bool:
        num_patches = sum(plan.num_patches for plan in self.plans.values())
        return len(self.plans) > MAX_PLANS or num_patches > MAX_PLANNED_PATCHES

    def _check(self, patches: Tensor, grids: Sequence[Grid]) -> None:
        if not patches.is_floating_point():
            raise ValueError(f"patches are {patches.dtype}; pass them through `normalize` first")
        merge = self.config.spatial_merge_size
        for grid in grids:
            if grid.h < merge or grid.w < merge or grid.h % merge or grid.w % merge:
                raise ValueError(
                    f"a grid of {grid.h}x{grid.w} patches cannot be merged {merge}x{merge}; "
                    f"resize the picture to positive multiples of {self.config.token_pixels} pixels"
                )
        wanted = [sum(grid.num_patches for grid in grids), self.config.patch_dim]
        if list(patches.shape) != wanted:
            raise ValueError(f"patches have shape {list(patches.shape)}; these grids need {wanted}")


class PatchEmbed(nn.Module):
    """Patches [N, patch_dim] to hidden states [N, C]; stored as the convolution it replaces."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False
        )

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(patches.to(weight.dtype), weight)


class VisionAttention(nn.Module):
    """Attention within spans, with rotary positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.q = nn.Linear(size, size)
        self.k = nn.Linear(size, size)
        self.v = nn.Linear(size, size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, spans: Spans, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (self.num_heads, -1)
        # The reference turns in float32 whatever the model's precision.
        q = rotate(self.q(x).unflatten(-1, heads).float(), cos, sin).to(x.dtype)  # [N, H, D]
        k = rotate(self.k(x).unflatten(-1, heads).float(), cos, sin).to(x.dtype)
        v = self.v(x).unflatten(-1, heads)
        y: Tensor = self.proj(attend(q, k, v, spans).flatten(1))
        return y


class GatedMLP(nn.Module):
    """SiLU-gated feed-forward, with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class VisionBlock(nn.Module):
    """One layer. [N, C] to [N, C]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, spans: Spans, cos: Tensor, sin: Tensor) -> Tensor:
        # Differs from reference in half precision: the norm's gain is applied before rounding, not
        # after (one rounding instead of two). In float32 there is no difference.
        x = x + self.attn(self.norm1(x), spans, cos, sin)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchMerger(nn.Module):
    """Four neighbouring patches to one row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.size = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(self.size, self.size), nn.GELU(), nn.Linear(self.size, config.out_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.ln_q(x).view(-1, self.size))
        return y


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """Full attention inside each span; q, k, v and result [N, H, D] in the order of computing.

    The only place that knows how spans become kernels: one dense call per run here.
    """
    if spans.gather is not None:
        q, k, v = (_reorder(x, spans.gather) for x in (q, k, v))
    outputs, start = [], 0
    for number, length in spans.runs:
        end = start + number * length
        outputs.append(_dense(q[start:end], k[start:end], v[start:end], length))
        start = end
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return y if spans.scatter is None else _reorder(y, spans.scatter)


def _dense(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    shape = (-1, length, *q.shape[1:])
    q, k, v = (x.view(shape).transpose(1, 2) for x in (q, k, v))  # [n, H, length, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """Permute rows, of which each is several successive patches of x [N, …]."""
    return x.reshape(len(order), -1)[order].view(x.shape)


def build_plan(grids: Sequence[Grid], config: VisionConfig, device: torch.device) -> VisionPlan:
    """Lay out a batch of frame pairs: integers on the host, then one copy to `device`."""
    merge = config.spatial_merge_size
    shapes = [(grid.h // merge, grid.w // merge) for grid in grids]
    tables = [_windows_of(h, w, config.window_size // config.token_pixels) for h, w in shapes]
    sizes = [h * w for h, w in shapes]
    window, window_rows, i, j = (np.concatenate(column) for column in zip(*tables, strict=True))
    pair = np.repeat(np.arange(len(grids)), sizes)
    pair_rows = np.repeat(sizes, sizes)

    # Longest first; ties keep pair, window and raster order. Within one pair the order is the same
    # in every batch.
    order = np.lexsort((window, pair, -window_rows))
    gather = np.lexsort((pair[order], -pair_rows[order]))
    cos, sin = _rotary(i[order], j[order], config)
    single = len(grids) == 1

    def on_device(array: Indices) -> Tensor:
        return torch.from_numpy(array).to(device)

    return VisionPlan(
        order=on_device(order),
        inverse=on_device(np.argsort(order)),
        cos=cos.to(device),
        sin=sin.to(device),
        windows=Spans(_runs(window_rows, merge**2)),
        pairs=Spans(
            _runs(pair_rows, merge**2),
            None if single else on_device(gather),
            None if single else on_device(np.argsort(gather)),
        ),
        num_patches=len(order) * merge**2,
    )


def _windows_of(h: int, w: int, side: int) -> tuple[Indices, Indices, Indices, Indices]:
    """For each row of an h x w pair: its window, the rows in that window, its vertical and
    horizontal place."""
    i, j = np.divmod(np.arange(h * w), w)
    down, across = i // side, j // side
    window_rows = np.minimum(side, h - down * side) * np.minimum(side, w - across * side)
    return down * -(-w // side) + across, window_rows, i, j


def _runs(span_rows: Indices, patches_per_row: int) -> tuple[tuple[int, int], ...]:
    """(number of spans, patches in each), longest first, given for each row how many are in its
    span."""
    lengths, counts = np.unique(span_rows, return_counts=True)
    return tuple(
        (int(count // length), int(length) * patches_per_row)
        for length, count in zip(lengths[::-1], counts[::-1], strict=True)
    )


def _rotary(i: Indices, j: Indices, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Factors for `rotate` of patches at rows i, j: half the angles turn with height, half with width."""
    merge = config.spatial_merge_size
    half = config.hidden_size // config.num_heads // 2
    frequency = 1.0 / (ROPE_THETA ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    down, across = np.divmod(np.arange(merge**2), merge)  # patches of a row, in their order
    y, x = (i[:, None] * merge + down).ravel(), (j[:, None] * merge + across).ravel()
    places = torch.from_numpy(np.stack((y, x), axis=1)).float()
    return rotation_factors((places[:, :, None] * frequency).flatten(1))  # [N, D/2]
