"""Vocoder against the reference on the same weights: whole clips, and the windows of a stream.

A window's reference computes the whole window and cuts, which is what its streaming users do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

from model.codec.vocoder import Vocoder
from model.config import VocoderConfig

Pair = tuple[Callable[[], object], Callable[[], object]]


@cache
def _models(width: int, num_kernels: int) -> tuple[Vocoder, Qwen2_5OmniToken2WavBigVGANModel]:
    torch.manual_seed(0)
    config = VocoderConfig(
        upsample_initial_channel=width,
        resblock_kernel_sizes=(3, 7, 11)[:num_kernels],
        resblock_dilation_sizes=((1, 3, 5),) * num_kernels,
    )
    ours = Vocoder(config)
    ours.reset_parameters()
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    reference = Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig(**fields)).eval()
    reference.load_state_dict(ours.state_dict())
    ours.eval().prepare()
    return ours, reference


def _window(width: int, num_kernels: int, frames: int, left: int = 0, right: int = 0) -> Pair:
    ours, reference = _models(width, num_kernels)
    mel = torch.randn(1, frames, ours.config.mel_dim) * 2 - 5
    bins_first = mel.transpose(1, 2).contiguous()
    rate = ours.samples_per_frame

    @torch.inference_mode()
    def run_ours() -> object:
        return ours.synthesize(mel, left, right)

    @torch.inference_mode()
    def run_reference() -> object:
        return reference(bins_first)[left * rate : (frames - right) * rate]

    return run_ours, run_reference


def _cases(width: int, num_kernels: int) -> dict[str, Callable[[], Pair]]:
    name = f"vocoder {width} channels, {num_kernels} kernels, "
    build = partial(_window, width, num_kernels)
    return {
        name + "first window 4 of 24 frames": partial(build, 24, 0, 20),
        name + "steady window 24 of 64 frames": partial(build, 64, 20, 20),
        name + "clip of 64 frames": partial(build, 64),
        name + "clip of 200 frames": partial(build, 200),
    }


CASES: dict[str, Callable[[], Pair]] = {
    **_cases(128, 2),
    **_cases(128, 3),
    **_cases(256, 2),
    **_cases(256, 3),
    **_cases(1536, 3),
}
