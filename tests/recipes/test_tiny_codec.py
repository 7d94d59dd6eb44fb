"""A code names the phoneme of its moment, as the ears hear where it sounds, and one of twenty ways to sound it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from recipes.tiny import codec, tree
from recipes.tiny.dataset import Clip
from recipes.tiny.mel import HOP, NUM_BINS
from recipes.tiny.phonemes import text_phonemes

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = 3, 7, 9


def heard(*sounds: tuple[int, int], frames: int) -> torch.Tensor:
    """Ears that hear the given phonemes at the given frames, and nothing between."""
    odds = torch.full((frames, codec.NUM_READ), -20.0)
    odds[:, 0] = 0.0
    for at, phoneme in sounds:
        odds[at, 0], odds[at, phoneme] = -20.0, 0.0
    return odds


def loud(*clips: int) -> torch.Tensor:
    """Mel of clips that are loud from their first frame to the last, so many codes each."""
    longest = tree.REPEATS * max(clips)
    mel = torch.full((len(clips), longest, NUM_BINS), codec.SILENCE)
    for own, count in zip(mel, clips, strict=True):
        own[: tree.REPEATS * count] = -4.0
    return mel


def test_each_code_sounds_the_phoneme_that_is_nearest() -> None:
    odds = torch.stack([heard((2, A), (8, B), frames=20), heard((1, C), frames=20)])
    targets = [torch.tensor([A, B]), torch.tensor([C])]
    found = codec.sounding(odds, loud(10, 4), torch.tensor([40, 16]), targets)
    assert found[0].tolist() == [A] * 3 + [B] * 7
    assert found[1].tolist() == [C] * 4 + [0] * 6  # the second clip ends with its fourth code


def test_a_clip_too_short_for_its_phonemes_is_told_nothing() -> None:
    odds = torch.stack([heard(frames=4), heard((1, A), frames=4)])
    targets = [torch.tensor([A, B, C]), torch.tensor([A])]
    found = codec.sounding(odds, loud(2, 2), torch.tensor([8, 8]), targets)
    assert found.tolist() == [[0, 0], [A, A]]


def test_a_code_names_what_it_is_told_and_what_is_told_changes_how_none_far_off_sounds() -> None:
    torch.manual_seed(0)
    tokenizer = codec.Tokenizer().eval()
    mel = torch.randn(1, 160, NUM_BINS) - 6
    silent = torch.zeros(1, 40, dtype=torch.long)
    told = silent.clone()
    told[0, 20:22] = A
    meanings, codes = tokenizer.encode(mel, told)
    before, others = tokenizer.encode(mel, silent)
    assert meanings.shape == (1, 40, tree.NUM_SOUNDS + len(tree.CODE_LEVELS))
    assert (codes // tree.NUM_WAYS).equal(told)
    torch.testing.assert_close(meanings, codec.meaning(codes))
    changed = (meanings != before).any(-1)[0]
    assert changed[20:22].all()
    assert not changed[:10].any()
    assert not changed[32:].any()
    assert (others < tree.NUM_WAYS).all()


def test_a_clip_is_encoded_whole_with_the_phonemes_of_its_text() -> None:
    pytest.importorskip("piper", reason="espeak-ng comes with the recipes' own requirements")
    torch.manual_seed(0)
    tokenizer = codec.Tokenizer().eval()
    noise = np.random.default_rng(0).integers(-9000, 9000, 90 * HOP, np.int16)
    clip = Clip("Hello there.", 0, noise)
    codes, mel, heard = codec.encode_clip(tokenizer, clip)
    assert codec.meaning(codes).shape == (23, tree.NUM_SOUNDS + len(tree.CODE_LEVELS))
    assert codes.shape == (23,)
    assert heard.shape == (46, codec.NUM_READ)
    assert mel.shape == (92, NUM_BINS)
    order = torch.unique_consecutive(codes // tree.NUM_WAYS)
    wanted = torch.unique_consecutive(torch.tensor(text_phonemes(clip.text)))
    assert order[order > 0].tolist() == wanted.tolist()


def test_a_run_without_weights_uses_the_codec_of_the_repository(tmp_path: Path) -> None:
    tokenizer = codec.load(tmp_path)
    again = tmp_path / "run"
    again.mkdir()
    torch.save({"tokenizer": tokenizer.state_dict()}, again / "best.pt")
    silence = torch.full((1, 40, NUM_BINS), codec.SILENCE)
    sounds = torch.zeros(1, 10, dtype=torch.long)
    _, codes = tokenizer.encode(silence, sounds)
    assert torch.equal(codes, codec.load(again).encode(silence, sounds)[1])
    assert bool((codes // tree.NUM_WAYS == 0).all())
