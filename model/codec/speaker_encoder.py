"""ECAPA-TDNN: a reference mel of any length to one speaker vector (Desplanques et al., 2020).

Runs once per voice. Published names live under `input_embed.spk_encoder.`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ConfigError, DitConfig

# Variance below this is lifted to it before the root.
_MIN_VARIANCE = 1e-12


class SpeakerEncoder(nn.Module):
    """Reference mel [B, T, mel_dim] to [B, enc_dim]; T is at least `min_frames`."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        channels, kernels = config.enc_channels, config.enc_kernel_sizes
        dilations = config.enc_dilations
        if not len(channels) == len(kernels) == len(dilations) >= 3:
            raise ConfigError(
                "dit_config.enc_channels, enc_kernel_sizes and enc_dilations must be equally long, "
                "at least 3"
            )
        if sum(channels[1:-1]) != channels[-1]:
            raise ConfigError(
                f"dit_config.enc_channels {list(channels)}: the last must be the sum of the middle"
            )
        blocks: list[nn.Module] = [TimeDelay(config.mel_dim, channels[0], kernels[0], dilations[0])]
        blocks += [
            SqueezeRes2Net(channels[i - 1], channels[i], kernels[i], dilations[i], config)
            for i in range(1, len(channels) - 1)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.mfa = TimeDelay(channels[-1], channels[-1], kernels[-1], dilations[-1])
        self.asp = AttentiveStatistics(channels[-1], config.enc_attention_channels)
        self.fc = nn.Conv1d(2 * channels[-1], config.enc_dim, 1)
        self.min_frames = 1 + max(
            d * (k - 1) - d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True)
        )

    def forward(self, ref_mel: Tensor) -> Tensor:
        if ref_mel.shape[1] < self.min_frames:
            raise ValueError(
                f"the reference mel has {ref_mel.shape[1]} frames; "
                f"it needs at least {self.min_frames}"
            )
        x = ref_mel.transpose(1, 2)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs[1:], dim=1))
        vector: Tensor = self.fc(self.asp(x))
        return vector.squeeze(-1)


class TimeDelay(nn.Module):
    """A dilated convolution whose input is reflected at both ends, then ReLU; length is kept."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels,
            out_channels,
            kernel,
            dilation=dilation,
            padding="same",
            padding_mode="reflect",
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Res2Net(nn.Module):
    """The channels in `scale` groups, each convolved on top of the result of the one before."""

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int) -> None:
        super().__init__()
        width = channels // scale
        self.scale = scale
        self.blocks = nn.ModuleList(
            TimeDelay(width, width, kernel, dilation) for _ in range(scale - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(self.scale, dim=1)
        outputs = [first]
        for i, (group, block) in enumerate(zip(rest, self.blocks, strict=True)):
            outputs.append(block(group if i == 0 else group + outputs[-1]))
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Scale every channel by what the clip's mean says about it."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, squeezed, 1)
        self.conv2 = nn.Conv1d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=2, keepdim=True)
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(mean))))


class SqueezeRes2Net(nn.Module):
    def __init__(
        self, in_channels: int, channels: int, kernel: int, dilation: int, config: DitConfig
    ) -> None:
        super().__init__()
        self.tdnn1 = TimeDelay(in_channels, channels, 1, 1)
        self.res2net_block = Res2Net(channels, config.enc_res2net_scale, kernel, dilation)
        self.tdnn2 = TimeDelay(channels, channels, 1, 1)
        self.se_block = SqueezeExcitation(channels, config.enc_se_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))
        return x + y


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, weighted by attention; [B, C, T] to [B, 2C, 1]."""

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.tdnn = TimeDelay(3 * channels, attention_channels, 1, 1)
        self.conv = nn.Conv1d(attention_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.full_like(x[:, :1], 1 / x.shape[2])
        mean, std = _statistics(x, uniform)
        context = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
        weights = self.conv(torch.tanh(self.tdnn(context))).softmax(dim=2)
        return torch.cat(_statistics(x, weights), dim=1)


def _statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weights * x).sum(2, keepdim=True)
    variance = (weights * (x - mean).square()).sum(2, keepdim=True)
    return mean, variance.clamp(min=_MIN_VARIANCE).sqrt()
