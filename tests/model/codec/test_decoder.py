"""The whole codec decoder: grouping, stop paths, lanes, distance to the whole-clip decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.codec.decoder import CodecDecoder
from model.codec.noise import NoiseSource
from model.config import SolverConfig
from model.windows import WindowSchedule
from tests.model.codec.conftest import random_codes

if TYPE_CHECKING:
    from model.codec.voice import Voice

# The cheapest solver that still carries a state from one evaluation to the next.
FAST = SolverConfig("euler", 3, guidance=0.5)
Decoders = Callable[..., CodecDecoder]


@pytest.fixture(scope="session")
def decoders(config: Any, part: Any) -> Decoders:
    made: dict[Any, CodecDecoder] = {}

    def decoder(schedule: WindowSchedule, solver: SolverConfig = FAST) -> CodecDecoder:
        if (schedule, solver) not in made:
            with torch.device("meta"):
                net = CodecDecoder(config.token2wav, solver, schedule)
            weights = {k: v.clone() for k, v in part("token2wav.").items()}
            net.load_state_dict(weights, strict=True, assign=True)
            net.requires_grad_(False).prepare()
            made[schedule, solver] = net
        return made[schedule, solver]

    return decoder


SCHEDULES = [
    WindowSchedule(),
    WindowSchedule((2,), 3, 1, borrow_right=False),
    WindowSchedule((), 1, 0, borrow_right=False),
    WindowSchedule((1,), 2, 2),
]


def stream(
    net: CodecDecoder, codes: Tensor, sizes: list[int], conditions: Tensor, seeds: list[int]
) -> Tensor:
    """PCM of replies whose codes arrive in pieces of these sizes."""
    lanes = list(range(1, 1 + len(codes)))
    state = net.init_state(len(codes) + 1)
    state.mel.fill_(torch.nan)
    for lane in lanes:
        net.assign(state, lane, conditions[lane - 1], seeds[lane - 1])
    pieces = [net.step(piece, state, lanes) for piece in codes.split(sizes, dim=1)]
    return torch.cat([*pieces, net.flush(state, lanes)], dim=1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_grouping_never_changes_a_sample(
    decoders: Decoders, chelsie: Voice, schedule: WindowSchedule
) -> None:
    net = decoders(schedule)
    conditions = net.condition(chelsie)[None]

    @settings(max_examples=5, deadline=None)
    @given(st.lists(st.integers(1, 25), max_size=3))
    def law(sizes: list[int]) -> None:
        codes = random_codes(1, sum(sizes), seed=len(sizes))
        offline = net(codes, conditions, [5])
        assert torch.equal(stream(net, codes, sizes, conditions, [5]), offline)
        assert offline.shape == (1, 480 * sum(sizes))
        assert offline.isfinite().all()

    law()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("total", [0, 1, 11, 12, 13, 24, 36, 48, 49])
def test_every_stop_path_gives_480_samples_per_code(
    decoders: Decoders, chelsie: Voice, schedule: WindowSchedule, total: int
) -> None:
    net = decoders(schedule)
    pcm = stream(net, random_codes(1, total), [1] * total, net.condition(chelsie)[None], [0])
    assert pcm.shape == (1, 480 * total)
    assert pcm.dtype == torch.float32
    assert pcm.isfinite().all()


def test_first_sound_comes_with_the_look_ahead_of_the_first_window(
    decoders: Decoders, chelsie: Voice
) -> None:
    net = decoders(WindowSchedule((1,), 3, 1))
    state = net.init_state(1)
    net.assign(state, 0, net.condition(chelsie), 0)
    lengths = [net.step(random_codes(1, 1), state, [0]).shape[1] for _ in range(60)]
    # 24 codes for the first block; 48 more for the next three
    assert {i + 1: n for i, n in enumerate(lengths) if n} == {24: 24 * 240, 60: 72 * 240}


@pytest.mark.slow
def test_whole_clip_equals_reference(
    decoders: Decoders, reference: Any, chelsie: Voice, monkeypatch: Any
) -> None:
    net = decoders(WindowSchedule(), SolverConfig())
    codes = random_codes(1, 30)
    noise = NoiseSource(9, 8).frames(0, 60)[None]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *_, **__: noise)
        theirs = reference.token2wav(codes, chelsie.cond[None], chelsie.ref_mel[None])
    ours = net.decode_whole_clip(codes, net.condition(chelsie)[None], [9])
    # 36 evaluations leave 1e-6 on the mel, which the vocoder may amplify
    torch.testing.assert_close(ours[0], theirs.flatten(), atol=1e-5, rtol=0)


def test_streamed_sound_stays_near_the_whole_clip(decoders: Decoders, chelsie: Voice) -> None:
    """And the final margin is nearer than the borrowed one; the full table is a benchmark."""
    codes = random_codes(1, 84)

    def snr_db(schedule: WindowSchedule) -> float:
        net = decoders(schedule, SolverConfig("euler", 5))
        condition = net.condition(chelsie)[None]
        whole = net.decode_whole_clip(codes, condition, [3])
        error = net(codes, condition, [3]) - whole
        return float(10 * torch.log10(whole.square().mean() / error.square().mean()))

    final, borrowed = (snr_db(WindowSchedule((1,), 3, 1, borrow_right=b)) for b in (False, True))
    assert final > 55
    assert borrowed > 40
    assert final > borrowed
    assert final > snr_db(WindowSchedule((1,), 3, 0, borrow_right=False))


def test_lanes_do_not_mix(decoders: Decoders, chelsie: Voice, ethan: Voice) -> None:
    net = decoders(SCHEDULES[0])
    codes = random_codes(2, 70)
    conditions = torch.stack([net.condition(chelsie), net.condition(ethan)])
    both = stream(net, codes, [50, 20], conditions, [1, 2])
    for i in range(2):
        alone = net(codes[i : i + 1], conditions[i : i + 1], [i + 1])
        # float32 rounding: matrix products of another height
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=0)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_lanes_of_equal_phase_share_a_call_at_different_times(
    decoders: Decoders, chelsie: Voice
) -> None:
    net = decoders(WindowSchedule((1,), 1, 1))
    condition = net.condition(chelsie)
    state = net.init_state(2)
    codes = random_codes(2, 60)
    pieces: list[list[Tensor]] = [[], []]

    def step(lanes: list[int], start: list[int], stop: list[int]) -> None:
        chosen = [codes[i, a:b] for i, a, b in zip(lanes, start, stop, strict=True)]
        for lane, pcm in zip(lanes, net.step(torch.stack(chosen), state, lanes), strict=True):
            pieces[lane].append(pcm)

    for lane in (0, 1):
        net.assign(state, lane, condition, lane)
    step([0], [0], [48])
    step([1], [0], [36])
    assert net.phase(state, 0) == net.phase(state, 1)
    step([0, 1], [48, 36], [60, 48])
    tails = net.flush(state, [0, 1])
    for lane, total in ((0, 60), (1, 48)):
        alone = net(codes[lane : lane + 1, :total], condition[None], [lane])[0]
        torch.testing.assert_close(
            torch.cat([*pieces[lane], tails[lane]]), alone, atol=1e-5, rtol=0
        )


def test_seed_and_voice_decide_the_sound(decoders: Decoders, chelsie: Voice, ethan: Voice) -> None:
    net = decoders(SCHEDULES[0])
    codes, first, second = (
        random_codes(1, 20),
        net.condition(chelsie)[None],
        net.condition(ethan)[None],
    )
    sound = net(codes, first, [1])
    assert torch.equal(sound, net(codes, first, [1]))
    assert not torch.equal(sound, net(codes, first, [2]))
    assert not torch.equal(sound, net(codes, second, [1]))


def test_a_reused_lane_remembers_nothing(decoders: Decoders, chelsie: Voice) -> None:
    net = decoders(SCHEDULES[0])
    condition, state = net.condition(chelsie), net.init_state(1)
    codes = random_codes(1, 40)
    for abandoned in (40, 13):
        net.assign(state, 0, condition, 3)
        net.step(random_codes(1, abandoned, seed=9), state, [0])  # cancelled: no flush
    net.assign(state, 0, condition, 4)
    pcm = torch.cat([net.step(codes, state, [0]), net.flush(state, [0])], dim=1)
    assert torch.equal(pcm, net(codes, condition[None], [4]))


def test_misuse_is_refused_and_changes_nothing(
    decoders: Decoders, chelsie: Voice, config: Any
) -> None:
    net = decoders(SCHEDULES[0])
    state = net.init_state(2)
    with pytest.raises(ValueError, match="lane 1 has no voice"):
        net.step(random_codes(1, 3), state, [1])
    net.assign(state, 0, net.condition(chelsie), 0)
    net.assign(state, 1, net.condition(chelsie), 0)
    with pytest.raises(ValueError, match="codec token 99"):
        net.step(torch.tensor([[1, 99]]), state, [0])
    assert net.phase(state, 0) == net.phase(state, 1)
    net.step(random_codes(1, 3), state, [0])
    for lanes in ([0, 1], [0, 0]):
        with pytest.raises(ValueError, match="in phase"):
            net.step(random_codes(2, 3), state, lanes)
    net.flush(state, [0])
    with pytest.raises(ValueError, match="lane 0 has no voice"):
        net.flush(state, [0])
    with pytest.raises(RuntimeError, match="prepare"):
        CodecDecoder(config.token2wav).init_state(1)
