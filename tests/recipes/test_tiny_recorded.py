"""What is kept of speech: as it was, and every lesson's codes point at what they sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from recipes.tiny import recorded
from recipes.tiny.codec import NUM_READ
from recipes.tiny.dataset import VOICE_NAMES
from recipes.tiny.recorded import Recording
from recipes.tiny.tree import NUM_CODES, NUM_WAYS

if TYPE_CHECKING:
    from pathlib import Path


def test_recordings_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "recorded.safetensors"
    assert recorded.read(path) == []
    made = [
        Recording("One — two.", 1, torch.tensor([3, 999, 0]), torch.tensor([0, 1, -1])),
        Recording("", 0, torch.tensor([20]), torch.tensor([-1]), is_kept_out=True),
    ]
    recorded.write(made, path)
    for back, one in zip(recorded.read(path), made, strict=True):
        assert (back.text, back.voice, back.is_kept_out) == (one.text, one.voice, one.is_kept_out)
        assert torch.equal(back.codes, one.codes) and torch.equal(back.sounding, one.sounding)


@pytest.fixture(scope="module")
def shipped() -> list[Recording]:
    return recorded.read()


def test_the_repository_has_both_voices_to_teach_and_to_test(shipped: list[Recording]) -> None:
    kinds = {(x.voice, x.is_kept_out) for x in shipped}
    assert kinds == {(voice, kept) for voice in range(len(VOICE_NAMES)) for kept in (False, True)}
    taught = {x.text for x in shipped if not x.is_kept_out}
    kept_out = [x.text for x in shipped if x.is_kept_out]
    again = [
        text for text in kept_out if text in taught
    ]  # what everybody says, "Nice to meet you."
    assert len(again) < len(kept_out) / 5


def test_codes_name_phonemes_in_the_order_of_the_text(shipped: list[Recording]) -> None:
    num_codes = num_unlike = 0
    for one in shipped:
        assert len(one.codes) == len(one.sounding) > 0
        assert 0 <= one.codes.min() and one.codes.max() < NUM_CODES
        assert one.codes.max() // NUM_WAYS < NUM_READ
        places = one.sounding[one.sounding >= 0]
        assert bool((places.diff() >= 0).all()) and bool((places.diff() <= 1).all())
        num_codes += len(one.codes)
        num_unlike += int(((one.codes // NUM_WAYS > 0) != (one.sounding >= 0)).sum())
    # Where nothing sounds a code names nothing; the codec and the lessons align a text each for itself.
    assert num_unlike < 0.02 * num_codes
