"""Streaming log-mel front end: 16 kHz samples to normalised mel frames, block by block.

Frame i looks at samples [160·i − 200, 160·i + 200). A block of 200 frames is therefore final once
40 samples beyond its end have arrived, and the next block looks 200 samples back. The buffer of a
lane is one such window:

    position  0            200                             32 200    32 240
              ├── history ──┼───── samples of the block ─────┼── ahead ──┼── zeros …
                                           start of the next window
                                      └──── history ─────────┼── block …

History of the first block is a reflection of samples 1…200, and what lies beyond the end of a clip
is zeros: the reference (the Whisper feature extractor) pads the clip with zeros to 300 s *before*
it reflects at both ends, so in a clip shorter than 201 samples the reflection, too, runs into
zeros.

Reference quirk: the two frames behind the last one of a clip still hear its last samples; the
reference drops them from its features but not from its peak. Without them a clip that ends in a
click is floored too low.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from model.streaming import StreamingModule

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE_RATE = 16_000
HOP_SAMPLES = 160
WINDOW_SAMPLES = 400
HISTORY_SAMPLES = WINDOW_SAMPLES // 2
# Samples past its end that a block waits for: its last frame starts 160 before the end and reaches
# 200 ahead.
LOOK_AHEAD_SAMPLES = HISTORY_SAMPLES - HOP_SAMPLES
# Frames computed behind the last one of a clip: two still hear it, the third is silence that keeps
# every product at four rows or more, as fewer take another path through MKL, with another last bit.
TAIL_FRAMES = 3
DYNAMIC_RANGE = 8.0  # log10 units below the peak at which features are floored
QUIETEST = 1e-10


class AudioInputError(ValueError):
    """Samples that the front end cannot take; the message names the fault."""


def num_frames(num_samples: int) -> int:
    """Mel frames of a clip of `num_samples`: every begun hop counts."""
    return -(-num_samples // HOP_SAMPLES)


@dataclass(slots=True)
class LogMelState:
    """Per lane: the window being filled, and the loudest log-mel value so far.

    Windows live on the host, where samples arrive in small pieces; `peaks` lives where the frames
    are computed.
    """

    windows: Tensor  # [L, history + block + ahead + zeros], float32
    peaks: Tensor  # [L], log10 units
    num_filled: list[int]  # positions of the window in use; the history of block 0 counts as filled
    num_blocks: list[int]  # blocks already returned
    floor_prior: float

    def reset(self, lanes: Sequence[int]) -> None:
        for lane in lanes:
            self.num_filled[lane] = HISTORY_SAMPLES
            self.num_blocks[lane] = 0
            self.peaks[lane] = self.floor_prior

    def num_frames_pending(self, lane: int) -> int:
        """Frames that `flush` would return for the lane now."""
        return num_frames(self.num_filled[lane] - HISTORY_SAMPLES)


class LogMel(StreamingModule[LogMelState]):
    """Samples [B, n] to log-mel frames [B, T, M]; over a clip T = ceil(n / 160). Grouping: exact.

    `step` returns whole blocks only, because a block is normalised with the clip's peak up to and
    including that block; `flush` returns the partial last one. Frames are float32.

    Before normalisation a frame equals the reference extractor bit for bit on a CPU (same float32
    operations in the same order), in a clip below 300 s, where the reference cuts.

    Differs from reference: it normalises with the peak of the whole clip, a stream only has the
    peak so far. The last block of a clip, hence a clip of one block, is equal; earlier ones differ
    where they lie 80 dB below a peak that comes later (measured in `docs/streaming.md`).
    `forward(x, peak="clip")` is the reference's definition.

    Args:
        num_mel_bins: M.
        block_frames: frames per block, `AudioConfig.block_frames`.
        floor_prior: peak (log10 power) assumed before the first block, so that a clip that starts
            in silence is floored as if speech had been heard; none by default.
        device: where frames are computed, in float32 whatever the model's precision. Samples are
            taken on the host.
    """

    def __init__(
        self,
        num_mel_bins: int = 128,
        block_frames: int = 200,
        floor_prior: float = -torch.inf,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.num_mel_bins = num_mel_bins
        self.block_samples = block_frames * HOP_SAMPLES
        self.floor_prior = floor_prior
        # Constants, not buffers: whoever casts a model to half precision must not cast these.
        self.window = torch.hann_window(WINDOW_SAMPLES, device="cpu").to(device)  # periodic
        self.filters = torch.from_numpy(slaney_filters(num_mel_bins)).to(device)  # [201, M]

    @property
    def window_samples(self) -> int:
        """Filled positions that make a block final."""
        return HISTORY_SAMPLES + self.block_samples + LOOK_AHEAD_SAMPLES

    def init_state(self, num_lanes: int) -> LogMelState:
        longest = self.window_samples + (1 + TAIL_FRAMES) * HOP_SAMPLES  # what `peek` may look at
        state = LogMelState(
            windows=torch.zeros(num_lanes, longest, dtype=torch.float32, device="cpu"),
            peaks=torch.zeros(num_lanes, dtype=torch.float32, device=self.window.device),
            num_filled=[0] * num_lanes,
            num_blocks=[0] * num_lanes,
            floor_prior=self.floor_prior,
        )
        state.reset(range(num_lanes))
        return state

    def forward(self, x: Tensor, peak: Literal["running", "clip"] = "running") -> Tensor:
        """Return the frames of whole clips; `peak="clip"` normalises as the offline reference does.

        Raises:
            AudioInputError: as `step`.
        """
        lanes = range(len(x))
        state = self.init_state(len(x))
        if peak == "running":
            return torch.cat((self.step(x, state, lanes), self.flush(state, lanes)), dim=1)
        blocks = self._take(x, state, lanes)
        rest, loudest = self._rest(state, lanes)
        loudest = torch.stack([loudest, *map(_loudest, blocks)]).amax(0)
        return _normalise(torch.cat((*blocks, rest), dim=1), loudest)

    def step(self, x: Tensor, state: LogMelState, lanes: Sequence[int]) -> Tensor:
        """Take samples [B, n] in [−1, 1]; return what became final, [B, k · block_frames, M].

        Raises:
            AudioInputError: not float32, not [B, n], or not finite; nothing has been taken then.
            ValueError: the lanes are not in phase.
        """
        frames = [self._no_frames(len(lanes))]
        for block in self._take(x, state, lanes):
            peaks = torch.maximum(state.peaks[list(lanes)], _loudest(block))
            state.peaks[list(lanes)] = peaks
            frames.append(_normalise(block, peaks))
        return torch.cat(frames, dim=1)

    def flush(self, state: LogMelState, lanes: Sequence[int]) -> Tensor:
        """Return the rest, as if the clip ended here, and reset the lanes.

        At most `block_frames + 1` frames: a clip that ends fewer than 40 samples behind a block's
        end completes that block and begins another.
        """
        frames = self.peek(state, lanes)
        state.reset(lanes)
        return frames

    def peek(self, state: LogMelState, lanes: Sequence[int]) -> Tensor:
        """Return what `flush` would and leave the lanes as they are, so that speech may go on."""
        self._require_phase(state, lanes)
        rest, loudest = self._rest(state, lanes)
        return _normalise(rest, torch.maximum(state.peaks[list(lanes)], loudest))

    def _take(self, x: Tensor, state: LogMelState, lanes: Sequence[int]) -> list[Tensor]:
        """Fill windows from `x`; return log-mel blocks [B, block_frames, M] of the full ones."""
        self._require_phase(state, lanes)
        x = _checked(x, len(lanes))
        blocks = []
        while x.shape[1]:
            start = state.num_filled[lanes[0]]
            n = min(x.shape[1], self.window_samples - start)
            state.windows[list(lanes), start : start + n] = x[:, :n]
            x = x[:, n:]
            for lane in lanes:
                state.num_filled[lane] = start + n
            if start + n == self.window_samples:
                blocks.append(self._log_mel(self._window(state, lanes, self.window_samples)))
                self._advance(state, lanes)
        return blocks

    def _rest(self, state: LogMelState, lanes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log-mel frames [B, t, M] of the block that is not full, and their peak [B]."""
        filled = state.num_filled[lanes[0]]
        t = num_frames(filled - HISTORY_SAMPLES)
        if t == 0:
            return self._no_frames(len(lanes)), self.window.new_full((len(lanes),), -torch.inf)
        # What lies behind the end is overwritten by later samples, so it may be cleared at any
        # time.
        state.windows[list(lanes), filled:] = 0
        end = WINDOW_SAMPLES + (t - 1 + TAIL_FRAMES) * HOP_SAMPLES
        frames = self._log_mel(self._window(state, lanes, end))
        return frames[:, :t], _loudest(frames)

    def _window(self, state: LogMelState, lanes: Sequence[int], end: int) -> Tensor:
        window = state.windows[list(lanes), :end]  # a copy [B, end]
        if state.num_blocks[lanes[0]] == 0:
            window[:, :HISTORY_SAMPLES] = window[
                :, HISTORY_SAMPLES + 1 : 2 * HISTORY_SAMPLES + 1
            ].flip(1)
        return window

    def _advance(self, state: LogMelState, lanes: Sequence[int]) -> None:
        """Begin the next window with the last 240 samples of this one."""
        kept = self.window_samples - self.block_samples
        state.windows[list(lanes), :kept] = state.windows[
            list(lanes), self.block_samples : self.window_samples
        ]
        for lane in lanes:
            state.num_filled[lane] = kept
            state.num_blocks[lane] += 1

    def _log_mel(self, samples: Tensor) -> Tensor:
        """Samples [B, 400 + 160 · (T − 1)] to log10 mel power [B, T, M], without padding."""
        frames = samples.to(self.window.device).unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
        spectrum = torch.fft.rfft(frames * self.window)  # [B, T, 201]
        # |z|² by way of |z|, as the reference does: re² + im² is faster, but differs in the last
        # bit.
        power: Tensor = spectrum.abs().square_()
        mel = power @ self.filters  # [B, T, M]
        return mel.clamp_(min=QUIETEST).log10_()

    def _no_frames(self, num_clips: int) -> Tensor:
        return self.window.new_empty(num_clips, 0, self.num_mel_bins)

    @staticmethod
    def _require_phase(state: LogMelState, lanes: Sequence[int]) -> None:
        phases = {(state.num_filled[lane], state.num_blocks[lane] == 0) for lane in lanes}
        if len(phases) != 1:
            raise ValueError(
                f"lanes {list(lanes)} must be one or more in phase, but their "
                f"(positions filled, is first block) are {sorted(phases)}"
            )


def slaney_filters(num_mel_bins: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return triangular filters [201, M], 0…8000 Hz, each of unit area in Hz.

    The Slaney mel scale is linear (200/3 Hz per mel) to 1000 Hz = 15 mel and logarithmic above, 27
    mel per factor 6.4.
    """
    log_step = np.log(6.4) / 27.0
    highest = 15.0 + np.log(SAMPLE_RATE / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, highest, num_mel_bins + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(log_step * (mels - 15.0)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, WINDOW_SAMPLES // 2 + 1)
    widths = np.diff(edges)
    offsets = edges[None, :] - bins[:, None]  # [201, M + 2]
    rising, falling = -offsets[:, :-2] / widths[:-1], offsets[:, 2:] / widths[1:]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (np.maximum(0.0, np.minimum(rising, falling)) * area).astype(np.float32)


def _checked(x: Tensor, num_clips: int) -> Tensor:
    """Return samples fit for the front end, on the host."""
    if x.dtype != torch.float32:
        raise AudioInputError(f"samples are {x.dtype}; scale them to float32 in [−1, 1]")
    if x.ndim != 2 or len(x) != num_clips:
        raise AudioInputError(
            f"samples have shape {list(x.shape)}, expected [{num_clips}, n]: mono"
        )
    x = x.cpu()
    # A sum is finite unless a term is not, or it overflows; many times faster than asking each.
    if not x.sum().isfinite() and not x.isfinite().all():
        clip, sample = (~x.isfinite()).nonzero()[0].tolist()
        raise AudioInputError(
            f"sample {sample} of clip {clip} is {x[clip, sample].item()}; samples must be finite numbers"
        )
    return x


def _loudest(frames: Tensor) -> Tensor:
    """Peak of every clip: [B, T, M] to [B]."""
    return frames.amax((1, 2))


def _normalise(frames: Tensor, peaks: Tensor) -> Tensor:
    """Floor 80 dB under the peak, then shift and scale: −1.5 is silence, values span two units."""
    floors = (peaks - DYNAMIC_RANGE)[:, None, None]
    return torch.maximum(frames, floors).add_(4.0).div_(4.0)
