"""The log-mel front end against the Whisper feature extractor, and the laws of its stream."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.mel import AudioInputError, LogMel, num_frames, slaney_filters

BLOCK = 32_000
# Every residue that matters: shorter than a hop, than the reflection, about a block's end (which
# waits for 40 samples), about the next hop.
LENGTHS = [1, 2, 159, 160, 161, 199, 200, 201, 399, 400, 401, 16_001, 16_159, BLOCK - 1, BLOCK]
LENGTHS += [BLOCK + 1, BLOCK + 39, BLOCK + 40, BLOCK + 41, BLOCK + 160, 2 * BLOCK, 2 * BLOCK + 7777]


@cache
def extractor(num_mel_bins: int = 128) -> WhisperFeatureExtractor:
    # 5 s instead of the published 300 s of padding: the same features, sixty times sooner.
    return WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=5)


def reference(x: Tensor, num_mel_bins: int = 128) -> Tensor:
    """Features [1, T, M] of one clip [1, n], as the published processor calls and trims them."""
    out = extractor(num_mel_bins)(x[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    return out["input_features"][:, :, : num_frames(x.shape[1])].transpose(1, 2)


def clip(num_samples: int, seed: int = 0) -> Tensor:
    """Noise that grows by 100 dB, so that floors bite and differ from block to block."""
    noise = torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))
    return noise * torch.logspace(-6, -1, num_samples)


def stream(log_mel: LogMel, pieces: list[Tensor]) -> Tensor:
    state = log_mel.init_state(len(pieces[0]))
    lanes = range(len(pieces[0]))
    return torch.cat(
        [*(log_mel.step(x, state, lanes) for x in pieces), log_mel.flush(state, lanes)], dim=1
    )


@pytest.mark.parametrize("num_mel_bins", [16, 80, 128])
def test_filters_equal_the_reference(num_mel_bins: int) -> None:
    expected = torch.from_numpy(extractor(num_mel_bins).mel_filters).float()
    # The same formula in another order of operations: float64 rounding, seen through float32.
    torch.testing.assert_close(
        torch.from_numpy(slaney_filters(num_mel_bins)), expected, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_clip_peak_reproduces_the_reference(num_samples: int) -> None:
    x = clip(num_samples)
    got = LogMel()(x, peak="clip")
    assert got.shape == (1, -(-num_samples // 160), 128)
    assert torch.equal(got, reference(x))


@pytest.mark.parametrize("num_mel_bins", [16, 80])
def test_other_numbers_of_mel_bins_reproduce_the_reference(num_mel_bins: int) -> None:
    x = clip(40_000)
    # Float32 matrix products of other shapes may sum in another order: one unit in the last place
    # of a log10 near 10, divided by 4.
    torch.testing.assert_close(
        LogMel(num_mel_bins)(x, peak="clip"), reference(x, num_mel_bins), rtol=0, atol=1e-6
    )


def test_a_click_at_the_very_end_counts_for_the_reference_peak() -> None:
    x = torch.randn(1, 1600, generator=torch.Generator().manual_seed(0)) * 1e-6
    x[0, -1] = 1.0  # loudest in the frame behind the last one
    assert torch.equal(LogMel()(x, peak="clip"), reference(x))


@pytest.mark.parametrize("is_growing", [True, False])
def test_each_block_is_normalised_with_the_peak_so_far(is_growing: bool) -> None:
    x = clip(2 * BLOCK + 9000)
    x = x if is_growing else x.flip(1)
    padded = torch.nn.functional.pad(x, (0, 16_000))
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)
    power = (spectrum.abs() ** 2).transpose(1, 2) @ torch.from_numpy(slaney_filters(128))
    raw = power.clamp(min=1e-10).log10()
    got, peak = LogMel()(x), torch.tensor(-torch.inf)
    for start, end, heard in ((0, 200, 200), (200, 400, 400), (400, 457, 459)):
        peak = torch.maximum(peak, raw[:, start:heard].amax())
        expected = (torch.maximum(raw[:, start:end], peak - 8) + 4) / 4
        assert torch.equal(got[:, start:end], expected)
    # Floors did bite: early blocks miss a later peak, later blocks hear an earlier one.
    assert torch.equal(got, reference(x)) is not is_growing


@pytest.mark.parametrize("num_samples", [1, 201, 16_001, BLOCK - 1, BLOCK, BLOCK + 39])
def test_a_clip_of_one_block_equals_the_reference_without_its_whole_clip_peak(
    num_samples: int,
) -> None:
    x = clip(num_samples)
    assert torch.equal(LogMel()(x), reference(x))


def test_the_last_block_equals_the_reference() -> None:
    x = clip(2 * BLOCK + 9000)
    assert torch.equal(LogMel()(x)[:, 400:], reference(x)[:, 400:])


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    block_frames=st.sampled_from([2, 4, 6]),
)
def test_grouping_never_matters(num_samples: int, cuts: list[int], block_frames: int) -> None:
    log_mel = LogMel(16, block_frames)
    x = clip(num_samples) if num_samples else torch.zeros(1, 0)
    edges = sorted({0, num_samples, *(c for c in cuts if c < num_samples)})
    pieces = [x[:, a:b] for a, b in pairwise(edges)] or [x]
    assert torch.equal(stream(log_mel, pieces), log_mel(x))


@pytest.mark.parametrize("piece", [1, 7, 160])
def test_grouping_never_matters_for_tiny_pieces(piece: int) -> None:
    log_mel, x = LogMel(16, block_frames=4), clip(1501)
    assert torch.equal(stream(log_mel, list(x.split(piece, dim=1))), log_mel(x))


@pytest.mark.parametrize("piece", [320, 9999, BLOCK, BLOCK + 40, 70_000])
def test_grouping_never_matters_at_the_published_size(piece: int) -> None:
    log_mel, x = LogMel(), clip(2 * BLOCK + 7777)
    assert torch.equal(stream(log_mel, list(x.split(piece, dim=1))), log_mel(x))


def test_a_block_is_final_forty_samples_behind_its_end() -> None:
    log_mel, x = LogMel(), clip(BLOCK + 40)
    state = log_mel.init_state(1)
    assert log_mel.step(x[:, : BLOCK + 39], state, [0]).shape == (1, 0, 128)
    assert log_mel.step(x[:, BLOCK + 39 :], state, [0]).shape == (1, 200, 128)


def test_lanes_equal_separate_clips_and_leave_others_alone() -> None:
    log_mel = LogMel(16, block_frames=4)
    clips = torch.cat([clip(2000, seed) for seed in range(3)])
    state = log_mel.init_state(4)
    bystander = log_mel.step(clips[:1, :900], state, [1])
    together = [log_mel.step(part, state, [3, 0, 2]) for part in clips.split(700, dim=1)]
    together.append(log_mel.flush(state, [3, 0, 2]))
    for i in range(3):
        assert torch.equal(torch.cat(together, dim=1)[i], log_mel(clips[i : i + 1])[0])
    rest = [log_mel.step(clips[:1, 900:], state, [1]), log_mel.flush(state, [1])]
    assert torch.equal(torch.cat([bystander, *rest], dim=1), log_mel(clips[:1]))


def test_flushed_lanes_are_clean() -> None:
    log_mel = LogMel(16, block_frames=4)
    state = log_mel.init_state(1)
    for seed in (1, 0):  # the louder clip's peak must not survive
        x = clip(1000, seed) * 10.0 ** (3 * seed)
        got = torch.cat([log_mel.step(x, state, [0]), log_mel.flush(state, [0])], dim=1)
        assert torch.equal(got, log_mel(x))


@pytest.mark.parametrize("num_samples", [0, 1, 150, 640, 679, 680, 1500])
def test_peek_foretells_flush_and_speech_may_go_on(num_samples: int) -> None:
    log_mel, x = LogMel(16, block_frames=4), clip(2500)
    state = log_mel.init_state(1)
    parts = [log_mel.step(x[:, :num_samples], state, [0])]
    peeked = log_mel.peek(state, [0])
    assert torch.equal(torch.cat([*parts, peeked], dim=1), log_mel(x[:, :num_samples]))
    assert state.num_frames_pending(0) == peeked.shape[1]
    parts += [log_mel.step(x[:, num_samples:], state, [0]), log_mel.flush(state, [0])]
    assert torch.equal(torch.cat(parts, dim=1), log_mel(x))


@pytest.mark.parametrize("peak", ["running", "clip"])
def test_silence_is_minus_one_and_a_half(peak: str) -> None:
    got = LogMel()(torch.zeros(1, BLOCK + 1000), peak=peak)
    assert torch.equal(got, torch.full((1, 207, 128), -1.5))


@pytest.mark.parametrize("peak", ["running", "clip"])
def test_no_samples_give_no_frames(peak: str) -> None:
    assert LogMel()(torch.zeros(2, 0), peak=peak).shape == (2, 0, 128)


def test_floor_prior_floors_a_quiet_beginning() -> None:
    quiet = torch.zeros(1, 1600)
    assert LogMel(floor_prior=1.5)(quiet).eq((1.5 - 8 + 4) / 4).all()


def test_precision_and_device_of_the_surrounding_model_do_not_touch_the_constants() -> None:
    x = clip(1000)
    with torch.device("meta"):
        log_mel = LogMel(16)
    assert torch.equal(log_mel.to(torch.bfloat16)(x), LogMel(16)(x))


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (torch.tensor([[0.0, 0.1, float("nan")]]), r"sample 2 of clip 0 is nan"),
        (torch.tensor([[float("-inf")]]), r"sample 0 of clip 0 is -inf"),
        (torch.zeros(1, 9, dtype=torch.int16), r"int16; scale them to float32"),
        (torch.zeros(1, 9, dtype=torch.float64), r"float64"),
        (torch.zeros(9), r"shape \[9\], expected \[1, n\]: mono"),
        (torch.zeros(2, 9), r"shape \[2, 9\], expected \[1, n\]: mono"),
    ],
)
def test_bad_samples_are_refused_whole(bad: Tensor, fault: str) -> None:
    log_mel, x = LogMel(16, block_frames=4), clip(1000)
    state = log_mel.init_state(1)
    first = log_mel.step(x[:, :500], state, [0])
    with pytest.raises(AudioInputError, match=fault):
        log_mel.step(bad, state, [0])
    rest = [log_mel.step(x[:, 500:], state, [0]), log_mel.flush(state, [0])]
    assert torch.equal(torch.cat([first, *rest], dim=1), log_mel(x))


def test_samples_whose_sum_overflows_are_taken() -> None:
    assert LogMel(16)(torch.full((1, 10), 3e38)).shape == (1, 1, 16)


@pytest.mark.parametrize("num_ahead", [3, 640])  # the second: equally filled, but not first
def test_lanes_out_of_phase_are_refused(num_ahead: int) -> None:
    log_mel = LogMel(16, block_frames=4)
    state = log_mel.init_state(2)
    log_mel.step(torch.zeros(1, 40), state, [0])
    log_mel.step(torch.zeros(1, 40 + num_ahead), state, [1])
    with pytest.raises(ValueError, match="in phase"):
        log_mel.step(torch.zeros(2, 1), state, [0, 1])
