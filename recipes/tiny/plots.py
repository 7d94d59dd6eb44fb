"""Pictures of sound: mel spectrograms below one another, as a person judges speech by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from recipes.tiny.mel import HOP, NUM_BINS, log_mel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LOWEST, HIGHEST = -9.0, 1.0  # log amplitude shown as black and as white
CAPTION, GAP = 18, 6
WIDE, HIGH = 3, 2  # pixels of a frame and of a bin
# Black, violet, orange, pale yellow: brightness rises all the way, so it reads in grey as well.
SHADES = ((0, (0, 0, 8)), (0.4, (110, 30, 110)), (0.75, (240, 120, 40)), (1, (252, 250, 190)))


def plot_mels(sounds: Sequence[tuple[str, NDArray[np.float32]]], path: Path) -> None:
    """Write a PNG of captioned spectrograms of waves [S] at 24 kHz, 10 ms in three columns, low notes below."""
    shaded = [(caption, _shaded(wave)) for caption, wave in sounds]
    height = CAPTION + HIGH * NUM_BINS + GAP
    sheet = Image.new("RGB", (max(p.width for _, p in shaded), height * len(shaded)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (caption, picture) in enumerate(shaded):
        draw.text((2, i * height), caption, "black", font)
        sheet.paste(picture, (0, i * height + CAPTION))
    sheet.save(path, optimize=True)


def _shaded(wave: NDArray[np.float32]) -> Image.Image:
    padded = np.pad(wave, (0, max(0, 8 * HOP - len(wave))))
    mel = log_mel(torch.from_numpy(padded.astype(np.float32))).numpy().T[::-1]  # [M, T]
    level = ((mel - LOWEST) / (HIGHEST - LOWEST)).clip(0, 1)
    at, colours = zip(*SHADES, strict=True)
    channels = [np.interp(level, at, [c[k] for c in colours]) for k in range(3)]
    picture = Image.fromarray(np.stack(channels, -1).astype(np.uint8))
    return picture.resize((WIDE * picture.width, HIGH * picture.height), Image.Resampling.NEAREST)
