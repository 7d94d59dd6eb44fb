"""Mel frames to waveform: BigVGAN, whole, by windows, or as a stream.

The network is convolutional, so a sample depends on a bounded stretch of mel (34 frames to each
side), and in effect on less: with 20 frames of context on each side a window reproduces the whole
clip down to float32 rounding. Streaming is therefore a matter of cutting, hop by hop, each hop
computed in a window with `margin_frames` on either side; `vocoder_windows` says which.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from model.codec.snake import AntiAliasedSnake, SnakeBeta, SnakeFilters
from model.codec.vocoder_windows import (
    END_KERNEL,
    Hops,
    Span,
    StageSpans,
    Window,
    layer_reaches,
    stage_spans,
)
from model.streaming import StreamingModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.config import VocoderConfig

MARGIN_FRAMES = 20
HOP_FRAMES = 24  # one DiT block: what its sampler makes final at a time
FIRST_HOP_FRAMES = 4  # all that one block allows with a margin of 20; hops then follow blocks
SMALL_CONV = 20480  # numbers up to which torch convolves on a CPU without its fast library


@dataclass(slots=True)
class VocoderState:
    """Per lane the mel frames that later windows need, and how many frames have arrived."""

    mel: Tensor  # [L, hops.max_held(), M]
    arrived: list[int]

    def reset(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self.arrived[lane] = 0


class Vocoder(StreamingModule[VocoderState]):
    """BigVGAN. Parameters have the published names; arithmetic is in their dtype.

    Args:
        config: the published sizes.
        margin_frames: context on each side of a streamed hop, and the delay of the stream. 20 is
            exact to float32 rounding, from 34 on nothing is cut at all, below 16 seams are audible.
        hop_frames: mel frames per streamed window. Longer ones recompute less but come later.
        first_hop_frames: the same for the first window of a clip; it decides when sound begins.
        plain: compute in the readable way, which is what the fast one is tested against.

    Raises:
        ValueError: a margin is negative or a hop is not positive.
    """

    def __init__(
        self,
        config: VocoderConfig,
        *,
        margin_frames: int = MARGIN_FRAMES,
        hop_frames: int = HOP_FRAMES,
        first_hop_frames: int = FIRST_HOP_FRAMES,
        plain: bool = False,
    ) -> None:
        super().__init__()
        if margin_frames < 0 or hop_frames < 1 or first_hop_frames < 1:
            raise ValueError(
                f"margin_frames {margin_frames} must be at least 0, hop_frames {hop_frames} and "
                f"first_hop_frames {first_hop_frames} at least 1"
            )
        self.config = config
        self.hops = Hops(margin_frames, first_hop_frames, hop_frames)
        self.plain = plain
        self._filters: SnakeFilters | None = None
        width, half = config.upsample_initial_channel, END_KERNEL // 2
        self.conv_pre = nn.Conv1d(config.mel_dim, width, END_KERNEL, padding=half)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.ModuleList([up]))
            width //= 2
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            ):
                self.resblocks.append(ResidualBlock(width, size, dilations))
        self.activation_post = AntiAliasedSnake(width)
        self.conv_post = nn.Conv1d(width, 1, END_KERNEL, padding=half, bias=False)

    @property
    def samples_per_frame(self) -> int:
        return self.config.samples_per_frame

    def reset_parameters(self) -> None:
        """Initialise for training: variance kept along the trunk, residual branches quiet."""
        for module in self.modules():
            if isinstance(module, SnakeBeta):
                nn.init.zeros_(module.alpha)
                nn.init.zeros_(module.beta)
            elif isinstance(module, nn.ConvTranspose1d):
                # Each output sample sees kernel / stride taps of every input channel.
                num_taps = module.in_channels * module.kernel_size[0] / module.stride[0]
                _reset_conv(module, 1 / math.sqrt(num_taps))
            elif isinstance(module, nn.Conv1d):
                _reset_conv(module, 1 / math.sqrt(module.weight[0].numel()))
        for block in cast("list[ResidualBlock]", list(self.resblocks)):
            for conv in cast("list[nn.Conv1d]", list(block.convs2)):
                _reset_conv(conv, 0.2 / math.sqrt(conv.weight[0].numel()))
        # Speech is quiet, and beyond the clip at ±1 there is no gradient.
        _reset_conv(self.conv_post, 0.05 / math.sqrt(self.conv_post.weight[0].numel()))

    def prepare(self) -> None:
        """Compute what derives from the weights; call after loading or moving them."""
        weight = self.conv_pre.weight
        self._filters = SnakeFilters.build(weight.dtype, weight.device)
        for module in self.modules():
            if isinstance(module, AntiAliasedSnake):
                module.prepare()

    def forward(self, mel: Tensor) -> Tensor:
        """Turn whole clips of natural-log mel [B, T, M] into float32 samples in [-1, 1].

        Returns [B, T · samples_per_frame].

        Raises:
            ValueError: `mel` is not [B, T, mel_dim].
        """
        return self.synthesize(mel, 0, 0)

    def synthesize(self, mel_window: Tensor, left: int, right: int) -> Tensor:
        """Vocode [B, T, M] without the samples of the first `left` and last `right` frames.

        Those frames are context. Pass 0 where the clip truly starts or ends. Returns float32
        samples [B, (T - left - right) · samples_per_frame] and remembers nothing between calls.

        Raises:
            ValueError: `mel_window` is not [B, T, mel_dim], or the context does not fit into it.
        """
        if mel_window.dim() != 3 or mel_window.shape[2] != self.config.mel_dim:
            raise ValueError(
                f"mel has shape {tuple(mel_window.shape)}; expected frames before bins, "
                f"[B, T, {self.config.mel_dim}]"
            )
        batch, frames = mel_window.shape[:2]
        if left < 0 or right < 0 or left + right > frames:
            raise ValueError(
                f"a context of {left} + {right} frames does not fit into a window of {frames}"
            )
        if left + right == frames:
            return mel_window.new_zeros(batch, 0, dtype=torch.float32)
        return self._network(mel_window, Span(left, frames - right))

    def _network(self, mel: Tensor, kept: Span) -> Tensor:
        filters = self._snake_filters()
        x = normalize_mel(mel.float()).to(self.conv_pre.weight.dtype)
        x = self.conv_pre(x.transpose(1, 2))  # [B, C, T]
        num_blocks = len(self.config.resblock_kernel_sizes)
        held = Span(0, mel.shape[1])
        for i, spans in enumerate(stage_spans(self.config, mel.shape[1], kept)):
            x = cast("nn.ModuleList", self.ups[i])[0](x[..., spans.read.within(held)])
            blocks = self.resblocks[i * num_blocks : (i + 1) * num_blocks]
            outputs = [block(x, spans, filters) for block in blocks]  # [B, C / 2, …]
            x, held = functools.reduce(torch.add, outputs) / num_blocks, spans.kept
        rate = self.samples_per_frame
        samples = Span(kept.start * rate, kept.stop * rate)
        x = self.conv_post(self.activation_post(x, filters))
        x = cast("Tensor", x)[:, 0, samples.within(held)]  # [B, samples]
        # Reference quirk: clipped, where BigVGAN proper ends in tanh.
        return x.float().clamp(-1.0, 1.0)

    def _snake_filters(self) -> SnakeFilters | None:
        if self.plain:
            return None
        if self._filters is not None and not self.training:
            return self._filters
        return SnakeFilters.build(self.conv_pre.weight.dtype, self.conv_pre.weight.device)

    def init_state(self, num_lanes: int) -> VocoderState:
        held = (num_lanes, self.hops.max_held(), self.config.mel_dim)
        mel = torch.zeros(held, dtype=torch.float32, device=self.conv_pre.weight.device)
        return VocoderState(mel, [0] * num_lanes)

    def step(self, x: Tensor, state: VocoderState, lanes: Sequence[int]) -> Tensor:
        """Take mel [B, n, M]; return the samples of every hop that is now complete.

        Raises:
            ValueError: `x` does not fit the lanes, or the lanes are not in phase.
        """
        if x.dim() != 3 or x.shape[0] != len(lanes) or x.shape[2] != self.config.mel_dim:
            raise ValueError(
                f"mel has shape {tuple(x.shape)}; expected one row for each of {len(lanes)} lanes, "
                f"[{len(lanes)}, n, {self.config.mel_dim}]"
            )
        before = _frames_in_phase(state, lanes)
        arrived = before + x.shape[1]
        known = Span(self.hops.held_from(before), arrived)
        mel = torch.cat((self._held(state, lanes, before), x.to(state.mel)), 1)
        windows = self.hops.windows(before, arrived)
        pieces = [self._window(mel, known, window) for window in windows]
        rest = mel[:, self.hops.held_from(arrived) - known.start :]
        for row, lane in enumerate(lanes):
            state.mel[lane, : rest.shape[1]] = rest[row]
            state.arrived[lane] = arrived
        return torch.cat(pieces, 1) if pieces else mel.new_zeros(len(lanes), 0)

    def flush(self, state: VocoderState, lanes: Sequence[int]) -> Tensor:
        """Return the samples of all frames still held back, as the clip ends here; reset the lanes.

        Raises:
            ValueError: the lanes are not in phase.
        """
        arrived = _frames_in_phase(state, lanes)
        window = self.hops.last_window(arrived)
        samples = self._window(self._held(state, lanes, arrived), window.span, window)
        state.reset(lanes)
        return samples

    def _window(self, mel: Tensor, known: Span, window: Window) -> Tensor:
        span, kept = window
        left, right = kept.start - span.start, span.stop - kept.stop
        return self.synthesize(mel[:, span.within(known)], left, right)

    def _held(self, state: VocoderState, lanes: Sequence[int], arrived: int) -> Tensor:
        num_held = arrived - self.hops.held_from(arrived)
        # Rows one by one: an index tensor made of host integers would have to wait for the device.
        return torch.stack([state.mel[lane, :num_held] for lane in lanes])


class ResidualBlock(nn.Module):
    """For each dilation d: x + conv(snake(conv_d(snake(x)))), on [B, C, T]."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)
        self.activations = nn.ModuleList(
            AntiAliasedSnake(channels) for _ in range(2 * len(dilations))
        )
        self.reaches = layer_reaches(kernel, dilations)

    def forward(self, x: Tensor, spans: StageSpans, filters: SnakeFilters | None) -> Tensor:
        """Turn the positions `spans.held` into `spans.kept`; without `filters` in the plain way."""
        first, second = self.activations[::2], self.activations[1::2]
        layers = zip(self.reaches, first, self.convs1, second, self.convs2, strict=True)
        held = spans.held
        for reach, act1, conv1, act2, conv2 in layers:
            needed = spans.kept.grown(reach, spans.length)
            x, held = x[..., needed.within(held)], needed
            h = _conv(act1(x, filters), cast("nn.Conv1d", conv1))
            x = x + conv2(act2(h, filters))
        return x[..., spans.kept.within(held)]


def normalize_mel(mel: Tensor) -> Tensor:
    """Bring natural-log amplitude to decibels less 20, -115 … 0 of which become -1 … 1, clipped.

    The reference's four steps in closed form. Its floor of -115 dB lies below the lower end of the
    clip (-95 dB before the 20 are taken off), so it has no effect.
    """
    scale = 2 * 20 / math.log(10) / 115
    return (mel * scale + (2 * 95 / 115 - 1)).clamp(-1.0, 1.0)


def _frames_in_phase(state: VocoderState, lanes: Sequence[int]) -> int:
    arrived = [state.arrived[lane] for lane in lanes]
    if len(set(arrived)) != 1 or len(set(lanes)) != len(lanes):
        raise ValueError(
            f"lanes {list(lanes)} have received {arrived} frames; the lanes of one call must be "
            "distinct and in phase, so group them by frames received"
        )
    return arrived[0]


def _conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Compute `conv(x)`, small dilated ones as a matrix product.

    Torch leaves those to a loop that takes up to five times as long.
    """
    if conv.dilation[0] == 1 or x.numel() > SMALL_CONV or x.device.type != "cpu":
        return cast("Tensor", conv(x))
    time, (dilation,), (kernel,) = x.shape[2], conv.dilation, conv.kernel_size
    edge = x.new_zeros(()).expand(*x.shape[:2], (kernel - 1) * dilation // 2)
    padded = torch.cat((edge, x, edge), 2)
    taps = [padded[..., j * dilation : j * dilation + time] for j in range(kernel)]
    columns = torch.stack(taps, 2).flatten(1, 2)  # [B, C · kernel, T]
    # A batched product even for one clip: `matmul` would first turn the wide operand over.
    weight = conv.weight.flatten(1).expand(x.shape[0], -1, -1)
    return torch.baddbmm(cast("Tensor", conv.bias)[:, None], weight, columns)


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    padding = (kernel - 1) * dilation // 2
    return nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation)


def _reset_conv(conv: nn.Conv1d | nn.ConvTranspose1d, std: float) -> None:
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
