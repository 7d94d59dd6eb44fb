"""Noise: a value depends on seed, frame and bin, never on how it was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.codec.noise import NoiseSource


@given(st.integers(0, 500), st.integers(0, 120), st.integers(0, 2**64 - 1))
def test_any_range_is_a_slice_of_the_whole(start: int, length: int, seed: int) -> None:
    whole = NoiseSource(seed, 4).frames(0, 640)
    assert torch.equal(NoiseSource(seed, 4).frames(start, start + length), whole[start:][:length])


def test_values_are_standard_normal_and_differ_by_seed_and_place() -> None:
    noise = NoiseSource(3, 80).frames(0, 2400)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert abs(float((noise[:-24] * noise[24:]).mean())) < 0.01  # blocks are independent
    assert not torch.equal(noise[:24], NoiseSource(4, 80).frames(0, 24))


def test_values_are_frozen() -> None:
    """The voice of every stored seed hangs on these numbers."""
    noise = NoiseSource(7, 2).frames(23, 25)
    expected = torch.tensor([[-0.419859, -0.866009], [-0.59347, 1.547825]])
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=0)


def test_far_frames_cost_no_more_than_near_ones() -> None:
    assert NoiseSource(0, 4).frames(10**12, 10**12 + 30).shape == (30, 4)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_outside_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=str(seed)):
        NoiseSource(seed, 4)
