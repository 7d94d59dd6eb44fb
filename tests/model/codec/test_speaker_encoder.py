"""ECAPA against the reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.codec.speaker_encoder import SpeakerEncoder
from model.config import ConfigError
from tests.model.codec.conftest import random_noise

if TYPE_CHECKING:
    from model.codec.dit import Dit


@pytest.mark.parametrize("frames", [5, 6, 37, 200])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_speaker_vector_equals_reference(
    dit: Dit, reference_dit: Any, frames: int, level: float
) -> None:
    """Also of silence, which is the unconditioned row."""
    ref_mel = level * random_noise(2, frames, 8)
    with torch.no_grad():
        expected = reference_dit.input_embed.spk_encoder(ref_mel)
    ours = dit.input_embed.spk_encoder(ref_mel)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)  # float32 rounding


def test_other_scales_equal_reference(reference_dit: Any, config: Any) -> None:
    """res2net_scale above 2 chains the groups."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as theirs

    sizes = dataclasses.replace(config.token2wav.dit, enc_res2net_scale=4, mel_dim=6)
    published = theirs.Qwen2_5OmniDiTConfig(
        mel_dim=6,
        enc_dim=8,
        enc_channels=[16, 16, 16, 16, 48],
        enc_attention_channels=8,
        enc_res2net_scale=4,
        enc_se_channels=8,
    )
    reference = theirs.ECAPA_TimeDelayNet(published).eval()
    ours = SpeakerEncoder(sizes)
    ours.load_state_dict(reference.state_dict())
    x = random_noise(1, 20, 6)
    torch.testing.assert_close(ours(x), reference(x), atol=2e-6, rtol=0)


def test_too_short_a_reference_is_refused(dit: Dit) -> None:
    with pytest.raises(ValueError, match="4 frames; it needs at least 5"):
        dit.input_embed.spk_encoder(random_noise(1, 4, 8))


def test_inconsistent_channels_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="enc_channels"):
        SpeakerEncoder(dataclasses.replace(config.token2wav.dit, enc_channels=(16, 16, 16, 16, 64)))
    with pytest.raises(ConfigError, match="equally long"):
        SpeakerEncoder(dataclasses.replace(config.token2wav.dit, enc_dilations=(1, 1)))
