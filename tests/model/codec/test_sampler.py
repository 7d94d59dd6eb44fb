"""Sampling against the reference sampler, and the laws of windows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from model.codec.sampler import FlowSampler
from model.codec.solver import time_plan
from model.config import SolverConfig
from tests.model.codec.conftest import SHORT, random_codes, random_noise

if TYPE_CHECKING:
    from model.codec.dit import Dit
    from model.codec.voice import Voice

Samplers = Callable[[SolverConfig], FlowSampler]
BLOCK_CODES = 12


def reference_sample(
    net: Any,
    monkeypatch: pytest.MonkeyPatch,
    voice: Voice,
    codes: Tensor,
    noise: Tensor,
    guidance: float,
) -> Tensor:
    """The published sampler, with its normal draw replaced by `noise`."""
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *_, **__: noise)
        mel: Tensor = net.sample(
            voice.cond.expand(len(codes), -1),
            voice.ref_mel.expand(len(codes), -1, -1),
            codes,
            guidance_scale=guidance,
        )
    return mel.transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_codes", "guidance"), [(1, 0.5), (12, 0.5), (31, 0.5), (31, 0.0), (115, 0.5)]
)
def test_whole_clip_equals_reference_through_36_evaluations(
    samplers: Samplers,
    reference_dit: Any,
    chelsie: Voice,
    monkeypatch: Any,
    num_codes: int,
    guidance: float,
) -> None:
    sampler = samplers(SolverConfig(guidance=guidance))
    codes, noise = random_codes(1, num_codes), random_noise(1, 2 * num_codes, 8)
    theirs = reference_sample(reference_dit, monkeypatch, chelsie, codes, noise, guidance)
    ours = sampler.sample(codes, noise, sampler.condition(chelsie)[None])
    # float32 rounding, 36 evaluations deep
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_cached_path_equals_the_trained_velocity(
    samplers: Samplers, dit: Dit, chelsie: Voice
) -> None:
    """One Euler step from noise is noise plus guided velocity at time 0."""
    codes, noise, t = random_codes(2, 31), random_noise(2, 62, 8), torch.zeros(2)
    cond, ref_mel = chelsie.cond.expand(2, -1), chelsie.ref_mel.expand(2, -1, -1)
    on, off = (
        dit.velocity(noise, codes, cond, ref_mel, t, is_null=torch.tensor([null, null]))
        for null in (False, True)
    )
    sampler = samplers(SolverConfig("euler", 2, guidance=2.0))
    mel = sampler.sample(codes, noise, sampler.condition(chelsie).expand(2, -1, -1))
    # float32 rounding: table and bias are added in another order
    torch.testing.assert_close(mel, noise + on + 2.0 * (on - off), atol=2e-5, rtol=0)


def test_noise_starts_as_wide_as_the_checkpoint_says(
    samplers: Samplers, dit: Dit, chelsie: Voice, monkeypatch: Any
) -> None:
    """The published checkpoints say nothing and mean 1."""
    codes, noise, sampler = random_codes(1, 31), random_noise(1, 62, 8), samplers(SHORT)
    condition = sampler.condition(chelsie)[None]
    narrow = sampler.sample(codes, 0.4 * noise, condition)
    monkeypatch.setattr(dit, "config", dataclasses.replace(dit.config, noise_scale=0.4))
    assert torch.equal(sampler.sample(codes, noise, condition), narrow)


def test_every_time_has_the_modulation_of_the_trained_path(samplers: Samplers, dit: Dit) -> None:
    sampler = samplers(SHORT)
    for time, cached in zip(time_plan(SHORT).times, sampler._modulations, strict=True):
        fresh = dit.modulations(dit.time_embed(torch.tensor([time])))
        torch.testing.assert_close(
            cached.layers[7].ff_gate, fresh.layers[7].ff_gate[0, 0], atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(cached.out_scale, fresh.out_scale[0, 0], atol=1e-6, rtol=1e-5)


def windows(
    sampler: FlowSampler,
    codes: Tensor,
    noise: Tensor,
    conditions: Tensor,
    new: int,
    ahead: int | None,
    lanes: list[int] | None = None,
    state: Any = None,
) -> Tensor:
    """C(new, ahead) of spec 7.4 by hand; `ahead` None solves all that remains in every window."""
    lanes = lanes or list(range(len(codes)))
    state = state or sampler.init_state(max(lanes) + 1)
    pieces, start, total = [], 0, codes.shape[1]
    while start < total:
        stop = total if ahead is None else start + (new + ahead) * BLOCK_CODES
        done = start + new * BLOCK_CODES
        is_last = stop > total or done >= total or (ahead is None and (total - start) % BLOCK_CODES)
        stop = total if is_last else stop
        mel = sampler.solve_window(
            codes[:, start:stop],
            noise[:, 2 * start : 2 * stop],
            conditions,
            state,
            lanes,
            None if is_last else new,
        )
        pieces.append(mel if is_last else mel[:, : 2 * (done - start)])
        start = total if is_last else done
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("solver", [SHORT, SolverConfig("euler", 4, guidance=0.0)])
def test_windows_that_see_all_the_future_equal_the_whole_clip(
    samplers: Samplers, chelsie: Voice, solver: SolverConfig
) -> None:
    """The remembered keys and values lose nothing."""
    sampler = samplers(solver)
    codes, noise = random_codes(2, 72), random_noise(2, 144, 8)
    conditions = sampler.condition(chelsie).expand(2, -1, -1)
    whole = sampler.sample(codes, noise, conditions)
    # float32 rounding: other batch shapes, other positions of the same distances
    streamed = windows(sampler, codes, noise, conditions, 1, None)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)


def test_more_look_ahead_comes_closer_to_the_whole_clip(samplers: Samplers, chelsie: Voice) -> None:
    sampler = samplers(SHORT)
    codes, noise = random_codes(1, 96), random_noise(1, 192, 8)
    conditions = sampler.condition(chelsie)[None]
    whole = sampler.sample(codes, noise, conditions)
    errors = [
        float((windows(sampler, codes, noise, conditions, 1, ahead) - whole).abs().max())
        for ahead in (0, 1, 2)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_without_past_an_error_would_be_seen(samplers: Samplers, chelsie: Voice) -> None:
    """The tolerance above means something: forgetting the past costs a thousandfold."""
    sampler = samplers(SHORT)
    codes, noise = random_codes(1, 48), random_noise(1, 96, 8)
    conditions = sampler.condition(chelsie)[None]
    whole = sampler.sample(codes, noise, conditions)
    late = sampler.sample(codes[:, 24:], noise[:, 48:], conditions)
    assert (late - whole[:, 48:]).abs().max() > 1e-2


def test_one_rk4_step_carries_a_change_four_blocks_back_and_eight_ahead(
    samplers: Samplers, chelsie: Voice
) -> None:
    sampler = samplers(SHORT)
    codes, noise = random_codes(1, 12 * BLOCK_CODES), random_noise(1, 12 * 24, 8)
    conditions = sampler.condition(chelsie)[None]
    changed = codes.clone()
    changed[0, 6 * BLOCK_CODES] = (changed[0, 6 * BLOCK_CODES] + 1) % 64
    difference = sampler.sample(codes, noise, conditions) - sampler.sample(
        changed, noise, conditions
    )
    reached = difference.view(12, 24, 8).abs().amax((1, 2)).gt(0).nonzero().flatten().tolist()
    assert reached == list(range(2, 12))


def test_batched_lanes_equal_single_ones_and_touch_no_other(
    samplers: Samplers, chelsie: Voice, ethan: Voice
) -> None:
    sampler = samplers(SHORT)
    codes, noise = random_codes(2, 43), random_noise(2, 86, 8)
    conditions = torch.stack([sampler.condition(chelsie), sampler.condition(ethan)])
    state = sampler.init_state(4)
    state.kv[1] = state.kv[3] = 7.0
    both = windows(sampler, codes, noise, conditions, 1, 1, lanes=[2, 0], state=state)
    alone = [
        windows(sampler, codes[i : i + 1], noise[i : i + 1], conditions[i : i + 1], 1, 1)
        for i in range(2)
    ]
    # float32 rounding: matrix products of another height
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.1
    assert state.kv[[1, 3]].eq(7.0).all()


def test_lanes_at_different_times_share_a_window(samplers: Samplers, chelsie: Voice) -> None:
    """No absolute position enters: lanes of different ages give the same bits."""
    sampler = samplers(SHORT)
    codes, noise = random_codes(1, 72), random_noise(1, 144, 8)
    condition = sampler.condition(chelsie)[None]

    def window(state: Any, lanes: list[int], block: int) -> Tensor:
        rows = len(lanes)
        piece, start = codes[:, block * 12 : block * 12 + 24], block * 24
        return sampler.solve_window(
            piece.expand(rows, -1),
            noise[:, start : start + 48].expand(rows, -1, -1),
            condition.expand(rows, -1, -1),
            state,
            lanes,
            1,
        )

    state = sampler.init_state(2)
    window(state, [0], 0)
    window(state, [0], 1)
    window(state, [1], 1)
    state.kv[1] = state.kv[0]  # lane 1 remembers the same block, but is one window younger
    mel = window(state, [0, 1], 2)
    assert torch.equal(mel[0], mel[1])


def test_windows_off_the_block_grid_and_mixed_phases_are_refused(
    samplers: Samplers, chelsie: Voice
) -> None:
    sampler = samplers(SHORT)
    conditions = sampler.condition(chelsie)[None]
    state = sampler.init_state(2)
    for num_codes, new in [(13, 1), (24, 3), (24, 0), (11, 1)]:
        with pytest.raises(ValueError, match="between blocks of 12"):
            sampler.solve_window(
                random_codes(1, num_codes),
                random_noise(1, 2 * num_codes, 8),
                conditions,
                state,
                [0],
                new,
            )
    sampler.solve_window(random_codes(1, 12), random_noise(1, 24, 8), conditions, state, [0], 1)
    with pytest.raises(ValueError, match="not in phase"):
        sampler.solve_window(
            random_codes(2, 12),
            random_noise(2, 24, 8),
            conditions.expand(2, -1, -1),
            state,
            [0, 1],
            1,
        )
    with pytest.raises(ValueError, match="codec token 77"):
        sampler.sample(torch.tensor([[77]]), random_noise(1, 2, 8), conditions)


def test_reset_forgets_the_past(samplers: Samplers, chelsie: Voice) -> None:
    sampler = samplers(SHORT)
    conditions, noise = sampler.condition(chelsie)[None], random_noise(1, 24, 8)
    state = sampler.init_state(1)
    first = sampler.solve_window(random_codes(1, 12), noise, conditions, state, [0], 1)
    state.reset([0])
    assert torch.equal(
        sampler.solve_window(random_codes(1, 12), noise, conditions, state, [0], 1), first
    )


def test_bfloat16_weights_stay_near_float32(samplers: Samplers, dit: Dit, chelsie: Voice) -> None:
    solver = SolverConfig("euler", 5)
    codes, noise = random_codes(1, 40), random_noise(1, 80, 8)
    exact = samplers(solver).sample(codes, noise, samplers(solver).condition(chelsie)[None])
    low = copy.deepcopy(dit).to(torch.bfloat16)
    sampler = FlowSampler(low, solver)
    mel = sampler.sample(codes, noise, sampler.condition(chelsie)[None])
    assert mel.dtype == torch.float32
    # bf16 keeps 8 bits; the solver's state stays float32, so errors do not pile up over steps
    assert (mel - exact).square().mean().sqrt() < 0.05 * exact.std()
