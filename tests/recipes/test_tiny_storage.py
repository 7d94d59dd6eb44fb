"""Weights in the repository: small, and what they were to within half a step of their row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from recipes.tiny import storage

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_read_is_what_was_written_to_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {
        "matrix": torch.randn(64, 128) * torch.logspace(-4, 2, 64)[:, None],
        "kernel": torch.randn(32, 16, 9),
        "bias": torch.randn(64).half().float(),
        "silent": torch.zeros(64, 128),
        "phonemes": torch.arange(50, dtype=torch.uint8),
    }
    storage.write(tensors, tmp_path / "x.safetensors")
    read = storage.read(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name in ("bias", "silent", "phonemes"):
        assert read[name].equal(tensors[name].float())
    for name in ("matrix", "kernel"):
        rows, wanted = read[name].flatten(1), tensors[name].flatten(1)
        half_a_step = wanted.abs().amax(1, keepdim=True) / 127 / 2
        assert ((rows - wanted).abs() <= 1.001 * half_a_step).all()
    assert (tmp_path / "x.safetensors").stat().st_size < 1.2 * (2 * 64 * 128 + 32 * 16 * 9)


def test_numbers_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bias"):
        storage.write({"bias": torch.tensor([1e6])}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="matrix"):
        storage.write({"matrix": torch.full((64, 128), torch.nan)}, tmp_path / "x.safetensors")
