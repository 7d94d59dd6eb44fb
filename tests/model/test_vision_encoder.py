"""The vision encoder against the reference tower, and pairs alone against pairs together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from model.config import VisionConfig
from model.image import Grid, Patches, image_patches, normalize, pair_patches
from model.vision_encoder import MAX_PLANNED_PATCHES, MAX_PLANS, VisionEncoder, build_plan

# Outputs are of order 1; kernels sum in another order for another number of patches, over 4 layers
# in float32.
FP32 = {"atol": 2e-5, "rtol": 0}

SIDES = st.integers(1, 11).map(lambda n: 2 * n)  # up to almost three windows
GRIDS = st.builds(Grid, SIDES, SIDES)


@pytest.fixture(scope="module")
def encoder(config, part) -> VisionEncoder:
    encoder = VisionEncoder(config.thinker.vision)
    encoder.load_state_dict(part("thinker.visual."), strict=True)
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tower(reference):
    return reference.thinker.model.visual


def patches_for(grids: list[Grid], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(g.num_patches for g in grids), 1176, generator=generator)


def separately(encoder: VisionEncoder, patches: Tensor, grids: list[Grid]) -> Tensor:
    pieces = patches.split([g.num_patches for g in grids])
    return torch.cat([encoder(x, [g]) for x, g in zip(pieces, grids, strict=True)])


@torch.no_grad()
def by_reference(tower, patches: Tensor, grids: list[list[int]]) -> Tensor:
    return tower(patches, torch.tensor(grids)).pooler_output


@pytest.mark.parametrize(
    "clips",
    [
        [[3, 20, 26]],
        [[2, 8, 8]],
        [[4, 4, 10]],
        [[1, 6, 6]],
        [[1, 2, 2]],
        [[1, 34, 46]],
        [[1, 2, 60]],
        [[1, 30, 2]],
        [[2, 10, 8], [1, 8, 10], [1, 2, 2], [3, 18, 6]],
    ],
)
def test_rows_are_the_references(encoder, tower, clips):
    grids = [Grid(h, w) for t, h, w in clips for _ in range(t)]
    patches = patches_for(grids)
    expected = by_reference(tower, patches, clips)
    assert expected.std() > 0.1  # else the tolerance would mean nothing
    torch.testing.assert_close(encoder(patches, grids), expected, **FP32)


@settings(max_examples=40, deadline=None)
@given(st.lists(GRIDS, min_size=1, max_size=5))
def test_pairs_together_are_pairs_alone(encoder, grids):
    patches = patches_for(grids)
    torch.testing.assert_close(encoder(patches, grids), separately(encoder, patches, grids), **FP32)


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_patch_changes_all_rows_of_its_pair_and_no_other(encoder, changed):
    grids = [Grid(8, 8), Grid(10, 6), Grid(8, 8)]
    patches = patches_for(grids)
    starts = np.cumsum([0] + [g.num_patches for g in grids])
    before = encoder(patches, grids)
    patches[starts[changed] + 5] += 1
    differs = (encoder(patches, grids) != before).any(-1)
    rows = torch.arange(len(before))
    own = (rows >= starts[changed] // 4) & (rows < starts[changed + 1] // 4)
    assert torch.equal(differs, own)


@settings(max_examples=40)
@given(GRIDS)
def test_spans_are_the_references_windows(grid):
    config = VisionConfig(hidden_size=16, num_heads=2)
    plan = build_plan([grid], config, torch.device("cpu"))
    index, bounds = get_vision_window_index(
        torch.tensor([[1, grid.h, grid.w]]), spatial_merge_size=2, window_size=112, patch_size=14
    )
    bounds = (bounds.unique_consecutive() // 4).tolist()
    expected = {tuple(index[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)}
    ours, start = set(), 0
    for number, length in plan.windows.runs:
        for _ in range(number):
            ours.add(tuple(plan.order[start : start + length // 4].tolist()))
            start += length // 4
    assert ours == expected
    assert plan.pairs.runs == ((1, grid.num_patches),)


def test_a_batch_makes_one_call_per_window_length():
    config = VisionConfig(hidden_size=16, num_heads=2)
    plan = build_plan([Grid(34, 46)] * 8, config, torch.device("cpu"))
    assert plan.windows.runs == ((160, 64), (32, 48), (40, 16), (8, 12))
    assert plan.pairs.runs == ((8, 34 * 46),)


def test_pictures_of_many_sessions_are_encoded_as_each_alone(encoder):
    rng = np.random.default_rng(0)
    pairs = [
        pair_patches(*rng.integers(0, 256, (2, h, w, 3), np.uint8))
        for h, w in ((320, 300), (200, 420), (320, 300))
    ]
    together = encoder.encode_pairs(pairs)
    assert [len(rows) for rows in together] == [encoder.num_rows(p.grid) for p in pairs]
    for rows, pair in zip(together, pairs, strict=True):
        torch.testing.assert_close(rows, encoder.encode_pairs([pair])[0], **FP32)
    assert encoder.encode_pairs([]) == []
    assert encoder(torch.empty(0, 1176), []).shape == (0, 32)


def test_an_image_gives_the_rows_that_processor_and_tower_give(encoder, tower):
    y, x = np.mgrid[:150, :201]
    waves = [np.sin(x / 9), np.cos(y / 11), np.sin((x + y) / 31)]
    frame = (127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)
    inputs = Qwen2VLImageProcessorPil()(Image.fromarray(frame), return_tensors="pt")
    expected = by_reference(tower, inputs["pixel_values"], inputs["image_grid_thw"].tolist())
    (rows,) = encoder.encode_pairs([image_patches(frame)])
    # Pillow's resize is up to two levels (0.03) off in a few pixels; the random tower hardly
    # amplifies them.
    torch.testing.assert_close(rows, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.bfloat16, 0.02),  # 8 bits of mantissa (0.004) over 4 layers
        (torch.float16, 0.0025),  # 11 bits (0.0005)
    ],
)
def test_half_precision_stays_close_to_full(encoder, dtype, tolerance):
    grids = [Grid(10, 12), Grid(4, 6)]
    patches = patches_for(grids)
    half = VisionEncoder(encoder.config).to(dtype)
    half.load_state_dict(encoder.state_dict())
    expected, rows = encoder(patches, grids), half(patches, grids)
    assert rows.dtype == dtype
    error = (rows.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < tolerance


def test_gradients_are_the_references_even_after_serving(config, part, tower):
    ours = VisionEncoder(config.thinker.vision)
    ours.load_state_dict(part("thinker.visual."))
    grids, patches = [Grid(6, 10)], patches_for([Grid(6, 10)])
    with torch.inference_mode():
        ours(patches, grids)  # leaves its plan behind
    ours(patches, grids).square().sum().backward()
    tower.zero_grad()
    tower(patches, torch.tensor([[1, 6, 10]])).pooler_output.square().sum().backward()
    expected = dict(tower.named_parameters())
    for name, p in ours.named_parameters():
        scale = expected[name].grad.abs().max().item()
        # Sums of 60 patches in another order; a gradient that is zero in theory (k.bias) is pure
        # rounding.
        torch.testing.assert_close(p.grad, expected[name].grad, atol=1e-5 * scale + 1e-3, rtol=0)
    tower.zero_grad()


def test_a_module_built_without_memory_loads_and_runs(config, part, encoder):
    with torch.device("meta"):
        late = VisionEncoder(config.thinker.vision)
    late.load_state_dict(part("thinker.visual."), strict=True, assign=True)
    grids = [Grid(6, 6)]
    assert torch.equal(late(patches_for(grids), grids), encoder(patches_for(grids), grids))


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_a_known_batch_neither_reads_nor_copies_between_host_and_device(encoder):
    grids = [Grid(6, 10), Grid(4, 4)]
    patches = patches_for(grids)
    encoder.plans.clear()
    with Recorder() as first:
        encoder(patches, grids)
    with Recorder() as again:
        encoder(patches, grids)
    assert first.names - again.names  # building the plan is visible to the recorder
    forbidden = {"aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::_to_copy"}
    assert not again.names & forbidden


def test_plans_are_reused_and_bounded(config):
    encoder = VisionEncoder(config.thinker.vision)
    cpu = torch.device("cpu")
    assert encoder.plan([Grid(4, 6)], cpu) is encoder.plan([Grid(4, 6)], cpu)
    grids = [Grid(64, 2 * n) for n in range(120, 160)]
    plans = [encoder.plan([grid], cpu) for grid in grids]
    kept = list(encoder.plans.values())
    assert sum(plan.num_patches for plan in kept) <= MAX_PLANNED_PATCHES
    assert kept == plans[-len(kept) :]
    for n in range(2, 2 * MAX_PLANS + 20, 2):
        encoder.plan([Grid(2, n)], cpu)
    assert len(encoder.plans) <= MAX_PLANS
    huge = encoder.plan([Grid(512, 512)], cpu)
    assert list(encoder.plans.values()) == [huge]  # kept, though over the bound


@pytest.mark.parametrize(
    ("patches", "grids", "message"),
    [
        (torch.zeros(4, 1176), [Grid(2, 4)], r"shape \[4, 1176\].*need \[8, 1176\]"),
        (torch.zeros(4, 588), [Grid(2, 2)], r"need \[4, 1176\]"),
        (torch.zeros(6, 1176), [Grid(2, 3)], "2x3 patches cannot be merged.*28 pixels"),
        (torch.zeros(0, 1176), [Grid(0, 4)], "0x4 patches cannot be merged"),
        (torch.zeros(4, 1176, dtype=torch.uint8), [Grid(2, 2)], "through `normalize`"),
    ],
)
def test_patches_that_do_not_fit_are_refused(encoder, patches, grids, message):
    with pytest.raises(ValueError, match=message):
        encoder(patches, grids)


def test_levels_are_normalised_on_the_way_in(encoder):
    levels = torch.arange(4 * 1176).remainder(256).to(torch.uint8).view(4, 1176)
    (rows,) = encoder.encode_pairs([Patches(levels, 2, 2)])
    assert torch.equal(rows, encoder(normalize(levels), [Grid(2, 2)]))
