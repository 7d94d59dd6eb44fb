"""The mel spectrogram of the model's own speech: what DiT produces and the vocoder reads.

Natural log of mel amplitude, 100 frames per second at 24 kHz, 80 bins over the whole band. Values lie
within the range the vocoder's pre-processing keeps (about -10.9 to 2.3), which `speech.level` ensures.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 24_000
HOP = 240
N_FFT = 1024
NUM_BINS = 80
FLOOR = 1e-5
EDGE = (N_FFT - HOP) // 2  # samples that frame 0 sees before its own hop


def log_mel(wave: Tensor, *, has_edges: bool = False) -> Tensor:
    """Turn samples [..., S] into frames [..., S // HOP, NUM_BINS]; frame t is centred on its own hop.

    With `has_edges` the wave carries `EDGE` true samples on either side, so that a cut segment
    gets the frames it has in its clip; otherwise the ends are mirrored.
    """
    if not has_edges:
        flat = F.pad(wave.reshape(1, -1, wave.shape[-1]), (EDGE, EDGE), mode="reflect")
        wave = flat.reshape(*wave.shape[:-1], -1)
    window = torch.hann_window(N_FFT, device=wave.device)
    spectrum = torch.stft(
        wave.reshape(-1, wave.shape[-1]),
        N_FFT,
        HOP,
        window=window,
        center=False,
        return_complex=True,
    )
    amplitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()  # [N, F, T]
    mel = filterbank(NUM_BINS, N_FFT, SAMPLE_RATE).to(wave.device) @ amplitude
    frames = mel.clamp(min=FLOOR).log().transpose(1, 2)  # [N, T, M]
    return frames.reshape(*wave.shape[:-1], *frames.shape[1:])


@functools.cache
def filterbank(num_bins: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangles of unit area on the Slaney scale (linear below 1 kHz, logarithmic above), [M, n_fft // 2 + 1]."""
    top = _hz_to_mel(sample_rate / 2)
    edges = torch.tensor(
        [_mel_to_hz(top * i / (num_bins + 1)) for i in range(num_bins + 2)], dtype=torch.float64
    )
    freqs = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (freqs - lower) / (centre - lower), (upper - freqs) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (upper - lower)).float()


_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) / _LOG_STEP


def _mel_to_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp(_LOG_STEP * (mel - 15))
