"""The codec's encoder is told what is said: where each phoneme sounds, by the ears; and a code keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.tiny import codec, tree
from recipes.tiny.dataset import Clip
from recipes.tiny.mel import HOP, NUM_BINS
from recipes.tiny.phonemes import text_phonemes

A, B, C = 3, 7, 9


def heard(*sounds: tuple[int, int], frames: int) -> torch.Tensor:
    """Ears that hear the given phonemes at the given frames, and nothing between."""
    odds = torch.full((frames, codec.NUM_READ), -20.0)
    odds[:, 0] = 0.0
    for at, phoneme in sounds:
        odds[at, 0], odds[at, phoneme] = -20.0, 0.0
    return odds


def test_each_20_ms_sounds_the_phoneme_that_is_nearest() -> None:
    odds = torch.stack([heard((2, A), (8, B), frames=20), heard((1, C), frames=20)])
    targets = [torch.tensor([A, B]), torch.tensor([C])]
    found = codec.sounding(odds, torch.tensor([40, 16]), targets)
    assert found[0].tolist() == [A] * 6 + [B] * 7 + [0] * 7
    assert found[1].tolist() == [C] * 6 + [0] * 14  # the second clip ends at frame 8


def test_a_clip_too_short_for_its_phonemes_is_told_nothing() -> None:
    odds = torch.stack([heard(frames=2), heard((1, A), frames=2)])
    targets = [torch.tensor([A, B, C]), torch.tensor([A])]
    found = codec.sounding(odds, torch.tensor([4, 4]), targets)
    assert found.tolist() == [[0, 0], [A, A]]


def test_what_is_told_reaches_the_code_of_its_moment_and_none_far_off() -> None:
    torch.manual_seed(0)
    tokenizer = codec.Tokenizer().eval()
    mel = torch.randn(1, 160, NUM_BINS) - 6
    silent = torch.zeros(1, 80, dtype=torch.long)
    told = silent.clone()
    told[0, 40:44] = A
    values, codes = tokenizer.encode(mel, silent)
    changed = (tokenizer.encode(mel, told)[0] != values).any(-1)[0]
    assert values.shape == (1, 40, len(tree.CODE_LEVELS))
    assert codes.shape == (1, 40)
    assert changed[20:22].any()
    assert not changed[:10].any()
    assert not changed[32:].any()


def test_a_clip_is_encoded_whole_with_the_phonemes_of_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("piper", reason="espeak-ng comes with the recipes' own requirements")
    torch.manual_seed(0)
    tokenizer, seen = codec.Tokenizer().eval(), []
    plain = tokenizer.encode

    def watched(mel: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(told)
        return plain(mel, told)

    monkeypatch.setattr(tokenizer, "encode", watched)
    clip = Clip(
        "Hello there.", 0, np.random.default_rng(0).integers(-9000, 9000, 90 * HOP, np.int16)
    )
    values, codes, mel = codec.encode_clip(tokenizer, clip)
    assert values.shape == (23, len(tree.CODE_LEVELS))
    assert codes.shape == (23,)
    assert mel.shape == (92, NUM_BINS)
    order = [p for p in torch.unique_consecutive(seen[0][0]).tolist() if p]
    assert order == torch.unique_consecutive(torch.tensor(text_phonemes(clip.text))).tolist()
