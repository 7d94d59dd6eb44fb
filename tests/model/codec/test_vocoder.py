"""The vocoder against the reference, its two streaming laws, and its window arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codec.vocoder import Vocoder
from model.config import OmniConfig, VocoderConfig

SMALL = VocoderConfig(mel_dim=8, upsample_initial_channel=64, resblock_kernel_sizes=(3, 7),
                      resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)))  # fmt: skip
PREFIX = "token2wav.code2wav_bigvgan_model."


def mel(frames: int, batch: int = 1, bins: int = 8, seed: int = 0) -> torch.Tensor:
    """Log-mel that mostly stays inside the clip range of the normalisation."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, bins, generator=g) * 3 - 5


def vocoder(config: VocoderConfig = SMALL, **options) -> Vocoder:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    built = Vocoder(config, **options)
    built.reset_parameters()
    with torch.no_grad():
        for name, p in built.named_parameters():
            if "alpha" in name or "beta" in name:
                p.normal_(0, 0.3)
        built.conv_post.weight.mul_(4)
    built.prepare()
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def published(part, config: OmniConfig) -> Vocoder:  # type: ignore[no-untyped-def]
    assert config.token2wav is not None
    built = Vocoder(config.token2wav.bigvgan)
    built.load_state_dict(part(PREFIX), strict=True)
    built.prepare()
    return built.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 24, 41])
def test_forward_equals_the_reference(published: Vocoder, reference, frames: int) -> None:  # type: ignore[no-untyped-def]
    x = mel(frames)
    with torch.no_grad():
        expected = reference.token2wav.code2wav_bigvgan_model(x.transpose(1, 2))
    actual = published(x)
    assert actual.shape == (1, 240 * frames) and actual.dtype == torch.float32
    # Over a hundred convolutions in another order of summation: 1e-5 of the signal in float32.
    torch.testing.assert_close(
        actual[0], expected, atol=2e-5 * float(expected.std() + 1e-3), rtol=1e-4
    )


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    sizes=st.sampled_from([(20, 24, 4), (24, 24, 24), (34, 10, 7), (3, 5, 1)]),
)
def test_grouping_never_changes_a_sample(cuts: list[int], sizes: tuple[int, int, int]) -> None:
    margin, hop, first = sizes
    v = vocoder(margin_frames=margin, hop_frames=hop, first_hop_frames=first)
    x = mel(sum(cuts))
    assert torch.equal(stream(v, x, cuts), stream(v, x, [sum(cuts)]))


def stream(v: Vocoder, x: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state = v.init_state(3)
    lanes = list(range(2, 2 - x.shape[0], -1))
    pieces = [v.step(piece, state, lanes) for piece in x.split(cuts, dim=1)]
    return torch.cat([*pieces, v.flush(state, lanes)], dim=1)


@pytest.mark.parametrize("margin", [20, 24, 34])
def test_stream_equals_whole(margin: int) -> None:
    v = vocoder(margin_frames=margin)
    x = mel(113)
    whole, streamed = v(x), stream(v, x, [113])
    assert streamed.shape == whole.shape
    # 20 frames of context leave less than float32 rounding; other window sizes sum in another order.
    assert (streamed - whole).abs().max() < 3e-5 * whole.std()
