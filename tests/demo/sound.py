"""Comparing sound that went through a browser with what was sent."""

from __future__ import annotations

import numpy as np

NUM_BANDS = 20
HOP_S = 0.01
LAGS = 80  # hops to each side


def bands(samples: np.ndarray, rate: int) -> np.ndarray:
    """Log power in 20 bands up to 4 kHz, one row each 10 ms."""
    size, hop = int(rate * 0.025), int(rate * HOP_S)
    num = max(0, (len(samples) - size) // hop)
    frames = np.stack([samples[n * hop : n * hop + size] for n in range(num)]) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = np.geomspace(150, 4000, NUM_BANDS + 1) * size / rate
    cuts = np.maximum(np.arange(1, NUM_BANDS + 2), edges.astype(int))
    energy = np.stack([power[:, a:b].sum(1) for a, b in zip(cuts, cuts[1:], strict=False)], 1)
    return np.log10(energy / (energy.max() + 1e-20) + 1e-5)


def match(heard: np.ndarray, heard_rate: int, sent: np.ndarray, sent_rate: int) -> float:
    """Correlation of band energies at the best lag: 1 the same speech, about 0.4 for any other."""
    h, s = bands(heard.astype(np.float64), heard_rate), bands(sent.astype(np.float64), sent_rate)
    best = 0.0
    for start in range(-LAGS, max(1, len(h) - len(s) + LAGS)):
        piece = h[max(0, start) : start + len(s)]
        other = s[max(0, -start) : max(0, -start) + len(piece)]
        n = min(len(piece), len(other))
        if n < 0.7 * len(s):
            continue
        if piece[:n].std() > 0:  # digital silence correlates with nothing
            best = max(best, float(np.corrcoef(piece[:n].ravel(), other[:n].ravel())[0, 1]))
    return best
