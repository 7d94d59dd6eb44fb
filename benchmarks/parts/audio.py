"""Audio path against the reference on the same weights: mel front end, encoder by clip length."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
    Qwen2_5OmniAudioEncoderConfig,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from model.audio_encoder import AudioEncoder
from model.config import AudioConfig
from model.cpu_linear import prepack
from model.mel import LogMel

Pair = tuple[Callable[[], object], Callable[[], object]]

TINY = AudioConfig(
    num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, d_model=16,
    max_source_positions=100, output_dim=32,
)  # fmt: skip
SMALL = AudioConfig(
    num_mel_bins=80, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=1024, d_model=256,
    output_dim=512,
)  # fmt: skip
# Published width; 4 of 32 layers, which is what fits a laptop's patience: layers are all alike.
PUBLISHED = AudioConfig(encoder_layers=4)


@cache
def _encoders(
    config: AudioConfig, dtype: torch.dtype
) -> tuple[AudioEncoder, Qwen2_5OmniAudioEncoder]:
    torch.manual_seed(0)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    reference = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**fields)).to(dtype).eval()
    ours = AudioEncoder(config).to(dtype)
    ours.load_state_dict(reference.state_dict())
    ours.prepare()
    prepack(ours)  # as loading does
    return ours, reference


def _encode(config: AudioConfig, frames: list[int], dtype: torch.dtype = torch.float32) -> Pair:
    """Whole clips of so many frames; several clips are one packed call on both sides."""
    ours, reference = _encoders(config, dtype)
    clips = [torch.randn(n, config.num_mel_bins) for n in frames]
    blocks = [block for clip in clips for block in clip.split(config.block_frames)]
    packed, lengths = torch.cat(clips).T.contiguous(), torch.tensor(frames)

    @torch.inference_mode()
    def run_ours() -> list[Tensor]:
        return ours.encode_blocks(blocks)

    @torch.inference_mode()
    def run_reference() -> object:
        return reference(packed, feature_lens=lengths)

    return run_ours, run_reference


def _mel(seconds: float, padding: str, num_mel_bins: int = 128) -> Pair:
    """`max_length` is how the published processor calls it; `do_not_pad` is the kindest to it."""
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=300)
    log_mel = LogMel(num_mel_bins)
    x = torch.randn(1, int(16_000 * seconds)) * 0.1
    samples = x[0].numpy()
    return (
        lambda: log_mel(x),
        lambda: extractor(samples, sampling_rate=16_000, padding=padding, return_tensors="pt"),
    )


CASES: dict[str, Callable[[], Pair]] = {
    "mel 0.1 s, unpadded": lambda: _mel(0.1, "do_not_pad"),
    "mel 2 s, unpadded": lambda: _mel(2, "do_not_pad"),
    "mel 30 s, unpadded": lambda: _mel(30, "do_not_pad"),
    "mel 2 s, as published": lambda: _mel(2, "max_length"),
    "encoder tiny 0.1 s": lambda: _encode(TINY, [10]),
    "encoder tiny 2 s": lambda: _encode(TINY, [200]),
    "encoder tiny 2.77 s": lambda: _encode(TINY, [277]),
    "encoder tiny 30 s": lambda: _encode(TINY, [3000]),
    "encoder small 0.1 s": lambda: _encode(SMALL, [10]),
    "encoder small 2 s": lambda: _encode(SMALL, [200]),
    "encoder small 2 s x 8": lambda: _encode(SMALL, [200] * 8),
    "encoder small mixed x 8": lambda: _encode(SMALL, [200, 200, 200, 37, 120, 200, 6, 199]),
    "encoder small 30 s": lambda: _encode(SMALL, [3000]),
    "encoder published 0.1 s": lambda: _encode(PUBLISHED, [10]),
    "encoder published 2 s": lambda: _encode(PUBLISHED, [200]),
    "encoder published 2.77 s": lambda: _encode(PUBLISHED, [277]),
    "encoder published 2 s x 4": lambda: _encode(PUBLISHED, [200] * 4),
    "encoder published mixed x 4": lambda: _encode(PUBLISHED, [200, 37, 120, 6]),
    "encoder published 2 s bf16": lambda: _encode(PUBLISHED, [200], torch.bfloat16),
}
