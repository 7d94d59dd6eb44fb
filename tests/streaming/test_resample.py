"""The resampler: exact under any slicing, exact in length, flat where it should be and silent where it should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ClientError
from streaming.resample import Resampler, Samples

RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


def noise(num_samples: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).integers(-32768, 32768, num_samples).astype(np.int16)


def whole(resampler: Resampler, samples: Samples) -> Samples:
    return np.concatenate((resampler.push(samples), resampler.flush()))


def tone(frequency: float, rate: int, seconds: float = 0.5) -> Samples:
    t = np.arange(int(rate * seconds)) / rate
    return np.rint(20_000 * np.sin(2 * np.pi * frequency * t)).astype(np.int16)


def level_db(frequency: float, in_rate: int, out_rate: int) -> float:
    """Level of a tone behind the resampler, edges left out."""
    heard = whole(Resampler(in_rate, out_rate), tone(frequency, in_rate))[200:-200] / 20_000
    return float(10 * np.log10(2 * np.mean(heard**2) + 1e-12))


@given(st.sampled_from(RATES), st.sampled_from(RATES), st.lists(st.integers(0, 700), max_size=12))
def test_slicing_changes_nothing(in_rate: int, out_rate: int, sizes: list[int]) -> None:
    samples = noise(sum(sizes))
    resampler = Resampler(in_rate, out_rate)
    pieces = [resampler.push(piece) for piece in np.split(samples, np.cumsum(sizes)) if len(piece)]
    sliced = np.concatenate((*pieces, resampler.flush()))
    assert np.array_equal(sliced, whole(Resampler(in_rate, out_rate), samples))


@given(st.sampled_from(RATES), st.sampled_from(RATES), st.integers(0, 2000))
def test_the_length_is_exact_and_flush_begins_anew(in_rate: int, out_rate: int, n: int) -> None:
    resampler = Resampler(in_rate, out_rate)
    first = whole(resampler, noise(n))
    assert len(first) == -(-n * out_rate // in_rate)
    assert np.array_equal(whole(resampler, noise(n)), first)


@pytest.mark.parametrize("in_rate", RATES)
def test_sound_comes_out_within_four_milliseconds_and_a_half(in_rate: int) -> None:
    """Two of filter and up to two of block; at 8 kHz the filter is twice as long."""
    resampler = Resampler(in_rate, 16_000)
    num_in = num_out = 0
    for _ in range(200):
        num_in += in_rate // 100
        num_out += len(resampler.push(noise(in_rate // 100)))
        late_ms = 1000 * (num_in / in_rate - num_out / 16_000)
        assert late_ms <= (4.5 if in_rate >= 16_000 else 6.5)


@pytest.mark.parametrize("in_rate", [24_000, 44_100, 48_000])
def test_the_band_is_flat_and_nothing_folds_back(in_rate: int) -> None:
    for frequency in (100, 1000, 3400, 6800):
        assert abs(level_db(frequency, in_rate, 16_000)) < 0.1
    for frequency in (8_500, 9_500, 11_000):
        assert level_db(frequency, in_rate, 16_000) < -75


@pytest.mark.parametrize("in_rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_phase(in_rate: int) -> None:
    """The first output coincides with the first input: no delay is left in the signal."""
    heard = whole(Resampler(in_rate, 16_000), tone(1000, in_rate))
    assert np.abs(heard[200:-200] - tone(1000, 16_000)[200:-200].astype(int)).max() <= 40


def test_full_scale_is_clipped_and_does_not_wrap() -> None:
    square = np.repeat(np.array([32767, -32768] * 50, np.int16), 12)
    heard = whole(Resampler(24_000, 16_000), square).astype(int)
    assert heard[3] > 20_000 and heard[11] < -20_000  # overshoot stays on its side


def test_equal_rates_pass_through() -> None:
    assert np.array_equal(Resampler(16_000, 16_000).push(noise(100)), noise(100))


@pytest.mark.parametrize("rate", [0, -1, 7_999, 48_025, 16_001, 192_000])
def test_impossible_rates_are_refused(rate: int) -> None:
    with pytest.raises(ClientError, match=f"{rate} Hz"):
        Resampler(rate, 16_000)
