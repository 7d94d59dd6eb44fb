"""The vocoder against the reference, and its two streaming laws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codec.vocoder import Vocoder, normalize_mel
from model.config import OmniConfig, VocoderConfig

SMALL = VocoderConfig(
    mel_dim=8,
    upsample_initial_channel=64,
    resblock_kernel_sizes=(3, 7),
    resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)),
)
PREFIX = "token2wav.code2wav_bigvgan_model."


def random_mel(frames: int, batch: int = 1) -> torch.Tensor:
    """Log-mel that lies mostly within the range that the normalisation does not clip."""
    g = torch.Generator().manual_seed(frames)
    return torch.randn(batch, frames, 8, generator=g) * 3 - 5


def build(config: VocoderConfig = SMALL, **options) -> Vocoder:  # type: ignore[no-untyped-def]
    """A vocoder with weights that make every layer matter."""
    torch.manual_seed(0)
    vocoder = Vocoder(config, **options)
    vocoder.reset_parameters()
    with torch.no_grad():
        for name, p in vocoder.named_parameters():
            if "alpha" in name or "beta" in name:
                p.normal_(0, 0.3)
            elif "convs2" in name and p.dim() == 3:
                p.mul_(3)
    vocoder.prepare()
    return vocoder.eval().requires_grad_(False)


def stream(vocoder: Vocoder, mel: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state = vocoder.init_state(3)
    state.mel.fill_(torch.nan)  # a read of what was never written would show
    lanes = [2, 0][: mel.shape[0]]
    pieces = [vocoder.step(piece, state, lanes) for piece in mel.split(cuts, dim=1)]
    return torch.cat([*pieces, vocoder.flush(state, lanes)], dim=1)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the signal's standard deviation."""
    return float((actual - expected).abs().max() / expected.std())


@pytest.fixture(scope="module")
def published(part, config: OmniConfig) -> Vocoder:  # type: ignore[no-untyped-def]
    assert config.token2wav is not None
    with torch.device("meta"):
        vocoder = Vocoder(config.token2wav.bigvgan)
    vocoder.load_state_dict(part(PREFIX), strict=True, assign=True)
    vocoder.prepare()
    return vocoder.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 24, 41])
def test_forward_equals_the_reference(published: Vocoder, reference, frames: int) -> None:  # type: ignore[no-untyped-def]
    mel = random_mel(frames)
    with torch.no_grad():
        expected = reference.token2wav.code2wav_bigvgan_model(mel.transpose(1, 2))
    actual = published(mel)
    assert actual.shape == (1, 240 * frames)
    # A hundred convolutions that sum in another order leave about 1e-5 of a float32 signal.
    assert error(actual[0], expected) < 5e-5


def test_normalization_equals_the_four_steps_of_the_reference(reference) -> None:  # type: ignore[no-untyped-def]
    mel = torch.linspace(-40, 10, 1001)
    expected = reference.token2wav.code2wav_bigvgan_model.process_mel_spectrogram(mel)
    # The reference rounds exp and log10 in between: a few units of float32's last place.
    torch.testing.assert_close(normalize_mel(mel), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("frames", [1, 7, 16, 29])
def test_fast_way_equals_plain_way(frames: int) -> None:
    plain, fast = build(plain=True), build()
    mel = random_mel(frames, batch=2)
    assert error(fast(mel), plain(mel)) < 5e-5  # float32 sums in another order


def test_fast_way_has_the_gradients_of_the_plain_way() -> None:
    gradients = []
    for plain in (True, False):
        vocoder = build(plain=plain).double().requires_grad_(True).train()
        vocoder(random_mel(9)).square().sum().backward()
        gradients.append({k: p.grad for k, p in vocoder.named_parameters()})
    for name, expected in gradients[0].items():
        # The samples are rounded to float32 on the way, hence not 1e-12.
        assert expected is not None and expected.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-7, msg=name)


def test_training_after_prepare_uses_the_new_weights() -> None:
    vocoder, mel = build(), random_mel(4)
    before = vocoder(mel)
    with torch.no_grad():
        vocoder.activation_post.act.alpha.add_(1)
        assert not torch.equal(vocoder.train()(mel), before)
        after = vocoder(mel)
        vocoder.prepare()
        assert torch.equal(vocoder.eval()(mel), after)


@settings(max_examples=10, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    sizes=st.sampled_from([(20, 24, 4), (24, 24, 24), (34, 10, 7), (3, 5, 1), (0, 4, 9)]),
    batch=st.integers(1, 2),
)
def test_grouping_never_changes_a_sample(
    cuts: list[int], sizes: tuple[int, int, int], batch: int
) -> None:
    margin, hop, first = sizes
    vocoder = build(margin_frames=margin, hop_frames=hop, first_hop_frames=first)
    frames = sum(cuts)
    mel = random_mel(frames, batch)
    whole_at_once = stream(vocoder, mel, [frames])
    assert whole_at_once.shape == (batch, 240 * frames)
    assert torch.equal(stream(vocoder, mel, cuts), whole_at_once)


@pytest.mark.parametrize(
    ("margin", "limit"),
    # From 20 on only rounding is left: windows of other sizes sum in another order.
    [(6, 1.0), (13, 0.1), (20, 5e-5), (24, 5e-5), (34, 5e-5)],
)
def test_stream_equals_whole(margin: int, limit: float) -> None:
    vocoder, mel = build(margin_frames=margin), random_mel(113)
    assert error(stream(vocoder, mel, [113]), vocoder(mel)) < limit


def test_margin_that_is_too_short_shows() -> None:
    vocoder, mel = build(margin_frames=4), random_mel(60)
    assert error(stream(vocoder, mel, [60]), vocoder(mel)) > 1e-3


@pytest.mark.parametrize("kernels", [(3, 7), (3, 7, 11)])
@pytest.mark.parametrize(
    ("frames", "left", "right"), [(64, 20, 20), (24, 0, 20), (33, 20, 0), (7, 3, 3), (9, 0, 1)]
)
def test_window_computes_only_what_it_keeps_and_keeps_it_exactly(
    kernels: tuple[int, ...], frames: int, left: int, right: int
) -> None:
    config = dataclasses.replace(
        SMALL,
        resblock_kernel_sizes=kernels,
        resblock_dilation_sizes=((1, 3, 5),) * len(kernels),
    )
    vocoder, mel = build(config).double(), random_mel(frames)
    vocoder.prepare()
    expected = vocoder(mel)[:, 240 * left : 240 * (frames - right)]
    actual = vocoder.synthesize(mel, left, right)
    assert actual.shape == expected.shape
    # In float64 a single position too few would show; samples come out rounded to float32.
    assert error(actual, expected) < 1e-6


def test_window_that_is_all_context_gives_nothing() -> None:
    assert build().synthesize(random_mel(5), 2, 3).shape == (1, 0)
    assert build()(random_mel(0)).shape == (1, 0)


def test_flush_leaves_clean_lanes_and_others_alone() -> None:
    vocoder = build()
    state = vocoder.init_state(2)
    mel = random_mel(30, batch=2)
    vocoder.step(mel, state, [0, 1])
    vocoder.flush(state, [0])
    assert state.arrived == [0, 30]
    again = vocoder.step(mel[:1], state, [0])
    rest = vocoder.flush(state, [0])
    assert torch.equal(torch.cat([again, rest], 1), stream(vocoder, mel[:1], [30]))
    assert vocoder.flush(state, [1]).shape == (1, 240 * 26)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_in_range(dtype: torch.dtype) -> None:
    vocoder, mel = build(), random_mel(30)
    expected = vocoder(mel)
    vocoder.to(dtype).prepare()
    actual = stream(vocoder, mel, [30])
    assert actual.dtype == torch.float32 and actual.abs().max() <= 1
    # bf16 keeps 8 bits and errors add up over 150 layers; this catches overflow, not finesse.
    assert (actual - expected).pow(2).mean().sqrt() < 0.1 * expected.std()


def test_initialisation_is_quiet_and_lets_gradients_through() -> None:
    torch.manual_seed(1)
    vocoder = Vocoder(SMALL)
    vocoder.reset_parameters()
    samples = vocoder(random_mel(20))
    assert 1e-3 < float(samples.detach().std()) < 0.3
    samples.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vocoder.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 5), (5, 8), (1, 5, 80)])
def test_misshaped_mel_is_refused(shape: tuple[int, ...]) -> None:
    vocoder = build()
    with pytest.raises(ValueError, match="frames before bins"):
        vocoder(torch.zeros(shape))
    with pytest.raises(ValueError, match="one row for each of 1 lanes"):
        vocoder.step(torch.zeros(shape), vocoder.init_state(1), [0])


@pytest.mark.parametrize("context", [(-1, 0), (0, -1), (3, 3)])
def test_context_that_does_not_fit_is_refused(context: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit into a window of 5"):
        build().synthesize(random_mel(5), *context)


def test_lanes_out_of_phase_are_refused() -> None:
    vocoder = build()
    state = vocoder.init_state(2)
    vocoder.step(random_mel(3), state, [1])
    with pytest.raises(ValueError, match="group them by frames received"):
        vocoder.step(random_mel(3, batch=2), state, [0, 1])
    with pytest.raises(ValueError, match="distinct"):
        vocoder.flush(state, [1, 1])


@pytest.mark.parametrize("options", [{"margin_frames": -1}, {"hop_frames": 0}])
def test_impossible_hops_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="hop_frames"):
        Vocoder(SMALL, **options)  # type: ignore[arg-type]  # all options named are integers
