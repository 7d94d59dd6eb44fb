"""Mel frames to waveform: BigVGAN, whole, by windows, or as a stream.

The network is convolutional, so a sample depends on a bounded stretch of mel (34 frames to each side), and in effect
on less: with 20 frames of context on each side a window reproduces the whole clip down to float32 rounding. Streaming
is therefore a matter of cutting: hop by hop, each hop computed in a window with `margin_frames` on either side.

    mel    0 ........ start ......... stop ........ arrived
                       |<--- hop --->|
           |<- margin->|             |<- margin->|
           |<------------- window -------------->|

A hop is computed once its right margin has arrived. Hops lie at fixed frames of the clip, never at whatever happened
to have arrived, so that splitting the input differently computes the very same windows. At the true start and end of
a clip there is no margin, and the zero padding of the layers is what the whole clip sees there as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.streaming import StreamingModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.config import VocoderConfig

MARGIN_FRAMES = 20
HOP_FRAMES = 24  # one DiT block: what its sampler makes final at a time
FIRST_HOP_FRAMES = (
    4  # all that one block allows behind a margin of 20; 4 + 24 k then follows the blocks
)


class Hops(NamedTuple):
    """Where the hops of a stream lie: the first is `first` frames long, the others `hop`."""

    margin: int
    first: int
    hop: int

    def final_frames(self, arrived: int) -> int:
        """Frames whose samples are final once `arrived` frames are known and more may come."""
        behind_margin = arrived - self.margin - self.first
        return 0 if behind_margin < 0 else self.first + behind_margin // self.hop * self.hop

    def held_from(self, arrived: int) -> int:
        """First frame that later windows still need."""
        return max(0, self.final_frames(arrived) - self.margin)

    def max_held(self) -> int:
        """Most frames that are ever held between two steps."""
        return 2 * self.margin + max(self.first, self.hop)

    def windows(self, before: int, arrived: int) -> Iterator[Window]:
        """Windows that became computable when the known frames grew from `before` to `arrived`."""
        start, final = self.final_frames(before), self.final_frames(arrived)
        while start < final:
            stop = start + (self.hop if start else self.first)
            yield Window(max(0, start - self.margin), start, stop, stop + self.margin)
            start = stop

    def last_window(self, arrived: int) -> Window:
        """The window of everything that is not final when the clip ends after `arrived` frames."""
        return Window(self.held_from(arrived), self.final_frames(arrived), arrived, arrived)


class Window(NamedTuple):
    """Frames [begin, end) are computed, the samples of frames [start, stop) are kept."""

    begin: int
    start: int
    stop: int
    end: int


@dataclass(slots=True)
class VocoderState:
    """Per lane the mel frames that later windows need, and how many frames have arrived."""

    mel: Tensor  # [L, hops.max_held(), M]
    arrived: list[int]

    def reset(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self.arrived[lane] = 0


class Vocoder(StreamingModule[VocoderState]):
    """BigVGAN. Parameters carry the published names; arithmetic is in their dtype, samples come out as float32.

    Args:
        config: the published sizes.
        margin_frames: context on each side of a streamed hop. 20 is exact to float32 rounding, from 34 on nothing
            is cut at all; below 16 seams become audible. Sets the delay of the stream.
        hop_frames: mel frames per streamed window. Longer hops recompute less margin and come out later.
        first_hop_frames: the same for the first window of a clip, which decides when sound begins.
        plain: use the readable activation everywhere; the reference for the fast one.

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
        width = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.mel_dim, width, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.ModuleList([up]))
            width //= 2
            for size, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            ):
                self.resblocks.append(ResidualBlock(width, size, dilations, plain))
        self.activation_post = AntiAliasedSnake(width, plain)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3, bias=False)

    @property
    def samples_per_frame(self) -> int:
        return self.config.samples_per_frame

    def reset_parameters(self) -> None:
        """Initialise for training from scratch: variance kept along the trunk, residual branches quiet, logs zero."""
        for module in self.modules():
            if isinstance(module, SnakeBeta):
                nn.init.zeros_(module.alpha)
                nn.init.zeros_(module.beta)
            elif isinstance(module, nn.ConvTranspose1d):
                # Each output sample sees kernel / stride taps of every input channel.
                taps = module.in_channels * module.kernel_size[0] / module.stride[0]
                nn.init.normal_(module.weight, std=1 / math.sqrt(taps))
            elif isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self._blocks():
            for conv in block.convs2:
                nn.init.normal_(conv.weight, std=0.2 / math.sqrt(conv.weight[0].numel()))
        # Speech is quiet, and beyond the clip at ±1 there is no gradient.
        fan_in = self.conv_post.weight[0].numel()
        nn.init.normal_(self.conv_post.weight, std=0.05 / math.sqrt(fan_in))

    def prepare(self) -> None:
        """Compute constants that derive from weights; call once after loading, before inference."""

    def forward(self, mel: Tensor) -> Tensor:
        """Turn whole clips of natural-log mel [B, T, M] into float32 samples in [-1, 1], [B, T * samples_per_frame].

        Raises:
            ValueError: `mel` is not [B, T, mel_dim].
        """
        if mel.dim() != 3 or mel.shape[2] != self.config.mel_dim:
            raise ValueError(
                f"mel has shape {tuple(mel.shape)}; expected [B, T, {self.config.mel_dim}], frames before bins"
            )
        if not mel.shape[1]:
            return mel.new_zeros(mel.shape[0], 0, dtype=torch.float32)
        x = normalize_mel(mel.float()).to(self.conv_pre.weight.dtype)
        x = self.conv_pre(x.transpose(1, 2))  # [B, C, T]
        num_blocks = len(self.config.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = cast("nn.ModuleList", up)[0](x)  # [B, C / 2, T · rate]
            blocks = self.resblocks[i * num_blocks : (i + 1) * num_blocks]
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total + block(x)
            x = total / num_blocks
        x = self.conv_post(self.activation_post(x))
        # Reference quirk: clipped, where BigVGAN proper ends in tanh.
        return x[:, 0].float().clamp(-1.0, 1.0)

    def synthesize(self, mel_window: Tensor, left: int, right: int) -> Tensor:
        """Vocode [B, T, M] and drop the samples of the first `left` and last `right` frames, which were context.

        Returns float32 samples [B, (T - left - right) * samples_per_frame]. Nothing is remembered between calls.

        Raises:
            ValueError: the context is negative or longer than the window.
        """
        frames = mel_window.shape[1]
        if left < 0 or right < 0 or left + right > frames:
            raise ValueError(
                f"context of {left} + {right} frames does not fit a window of {frames}"
            )
        rate = self.samples_per_frame
        return self(mel_window)[:, left * rate : (frames - right) * rate]

    def init_state(self, num_lanes: int) -> VocoderState:
        held = (num_lanes, self.hops.max_held(), self.config.mel_dim)
        mel = torch.zeros(held, dtype=torch.float32, device=self.conv_pre.weight.device)
        return VocoderState(mel, [0] * num_lanes)

    def step(self, x: Tensor, state: VocoderState, lanes: Sequence[int]) -> Tensor:
        """Take mel [B, n, M]; return the samples of every hop that is now complete, [B, k * samples_per_frame].

        Raises:
            ValueError: `x` does not fit the lanes, or the lanes are not in phase.
        """
        if x.dim() != 3 or x.shape[0] != len(lanes) or x.shape[2] != self.config.mel_dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected [{len(lanes)} lanes, n, {self.config.mel_dim}]"
            )
        before = self._arrived(state, lanes)
        arrived = before + x.shape[1]
        origin = self.hops.held_from(before)
        mel = torch.cat(
            [self._held(state, lanes), x.to(state.mel)], dim=1
        )  # frames [origin, arrived)
        pieces = [self._run(w, mel, origin) for w in self.hops.windows(before, arrived)]
        self._hold(mel[:, self.hops.held_from(arrived) - origin :], state, lanes)
        for lane in lanes:
            state.arrived[lane] = arrived
        return torch.cat(pieces, dim=1) if pieces else mel.new_zeros(len(lanes), 0)

    def flush(self, state: VocoderState, lanes: Sequence[int]) -> Tensor:
        """Return the samples of all frames not yet emitted, with the clip ending here, and reset the lanes.

        Raises:
            ValueError: the lanes are not in phase.
        """
        window = self.hops.last_window(self._arrived(state, lanes))
        samples = self._run(window, self._held(state, lanes), window.begin)
        state.reset(lanes)
        return samples

    def _run(self, window: Window, mel: Tensor, origin: int) -> Tensor:
        begin, start, stop, end = window
        return self.synthesize(mel[:, begin - origin : end - origin], start - begin, end - stop)

    def _arrived(self, state: VocoderState, lanes: Sequence[int]) -> int:
        counts = {state.arrived[lane] for lane in lanes}
        if len(counts) != 1 or len(set(lanes)) != len(lanes):
            raise ValueError(
                f"lanes {list(lanes)} have received {[state.arrived[i] for i in lanes]} frames; the lanes of "
                "one call must be distinct and in phase, so group them by frames received"
            )
        return counts.pop()

    def _held(self, state: VocoderState, lanes: Sequence[int]) -> Tensor:
        arrived = self._arrived(state, lanes)
        num_held = arrived - self.hops.held_from(arrived)
        # Rows are picked one by one: an index tensor made of host integers would wait for the device.
        return torch.stack([state.mel[lane, :num_held] for lane in lanes])

    def _hold(self, mel: Tensor, state: VocoderState, lanes: Sequence[int]) -> None:
        for row, lane in enumerate(lanes):
            state.mel[lane, : mel.shape[1]] = mel[row]

    def _blocks(self) -> list[ResidualBlock]:
        return cast("list[ResidualBlock]", list(self.resblocks))


class ResidualBlock(nn.Module):
    """For each dilation d: x + conv(snake(conv_d(snake(x)))), [B, C, T] to [B, C, T]."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int], plain: bool) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, kernel, 1) for _ in dilations)
        self.activations = nn.ModuleList(
            AntiAliasedSnake(channels, plain) for _ in range(2 * len(dilations))
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.activations[::2], self.activations[1::2]
        for act1, conv1, act2, conv2 in zip(first, self.convs1, second, self.convs2, strict=True):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class SnakeBeta(nn.Module):
    """x + sin²(e^α x) / (e^β + 1e-9) per channel; α and β are stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp()[:, None]  # [C, 1]
        magnitude = 1.0 / (self.beta.exp()[:, None] + 1e-9)
        return x + magnitude * (x * frequency).sin().square()


class AntiAliasedSnake(nn.Module):
    """Snake at twice the rate, between an up- and a down-sampling filter, [B, C, T] to [B, C, T]."""

    def __init__(self, channels: int, plain: bool) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        taps = torch.tensor(antialias_taps(), dtype=x.dtype, device=x.device)
        taps = taps.expand(x.shape[1], 1, -1)
        x = F.pad(x, (5, 5), mode="replicate")
        x = 2 * F.conv_transpose1d(x, taps, stride=2, groups=x.shape[1])[..., 15:-15]
        x = F.pad(self.act(x), (5, 6), mode="replicate")
        return F.conv1d(x, taps, stride=2, groups=x.shape[1])


def normalize_mel(mel: Tensor) -> Tensor:
    """Natural-log amplitude to decibels above -115 less 20, as [-1, 1]: the reference's four steps in closed form.

    The reference first floors the amplitude at -115 dB; that is below the lower clip (-95 dB), so it has no effect.
    """
    scale = 2 * 20 / math.log(10) / 115
    return (mel * scale + (2 * 95 / 115 - 1)).clamp(-1.0, 1.0)


def antialias_taps() -> tuple[float, ...]:
    """Return the 12 taps of the half-band low-pass: a Kaiser-windowed sinc of cutoff 1/4, summing to one."""
    attenuation = 2.285 * 5 * math.pi * (4 * 0.3) + 7.95
    window = torch.kaiser_window(
        12, periodic=False, beta=0.1102 * (attenuation - 8.7), dtype=torch.float64, device="cpu"
    )
    time = torch.arange(12, dtype=torch.float64, device="cpu") - 5.5
    taps = window * torch.sinc(0.5 * time)
    return tuple((taps / taps.sum()).tolist())


def _same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    padding = (kernel - 1) * dilation // 2
    return nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation)
