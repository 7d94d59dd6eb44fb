"""Spectrograms: a tone is a bright line where its note lies, however short the sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from recipes.tiny.plots import CAPTION, HIGH, WIDE, plot_mels

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tone_is_a_line_and_a_higher_one_lies_above(tmp_path: Path) -> None:
    lines = []
    for hertz in (300, 3000):
        wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(12_000) / 24_000)
        plot_mels([("tone", wave.astype(np.float32))], tmp_path / "tone.png")
        picture = np.asarray(Image.open(tmp_path / "tone.png")).sum(-1)[CAPTION:]
        assert picture.shape[1] == WIDE * 50
        bright = picture[: HIGH * 80, 75].argmax()
        assert (picture[bright, 10:-10] > 2 * np.median(picture[: HIGH * 80, 10:-10])).all()
        lines.append(bright)
    assert lines[1] < lines[0]


def test_no_sound_is_a_black_strip(tmp_path: Path) -> None:
    plot_mels([("nothing", np.zeros(0, np.float32))], tmp_path / "none.png")
    assert np.asarray(Image.open(tmp_path / "none.png"))[CAPTION + 5].sum(-1).max() < 60
