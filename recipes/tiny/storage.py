"""How trained weights lie in the repository: matrices in eight bits with one scale per row, all else in float16.

History keeps every version of these files, so they are half as large as they could be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SCALE = ".row_scale"
MIN_NUMBERS = 4096  # smaller ones are not worth a rounding
INTEGERS = (torch.uint8, torch.int64)


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Store `tensors` in the small form.

    Raises:
        ValueError: a number is not finite, or does not fit float16.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dim() > 1 and value.numel() >= MIN_NUMBERS and value.dtype not in INTEGERS:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
            stored[name + SCALE] = scale
        else:
            stored[name] = value if value.dtype in INTEGERS else value.to(torch.float16)
    broken = [name for name, value in stored.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {broken[:3]} cannot be stored")
    save_file(stored, path)
    path.chmod(0o644)


def read(path: Path) -> dict[str, Tensor]:
    """Return what a file holds, under the names that were stored, in float32."""
    stored = load_file(path)
    scales = {k.removesuffix(SCALE): v for k, v in stored.items() if k.endswith(SCALE)}
    return {
        name: value.float()
        * (scales[name].view(-1, *(1,) * (value.dim() - 1)) if name in scales else 1.0)
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
