"""Vision encoder and picture preparation against the reference, on the same weights and pictures.

Published sizes run 4 layers, one of them over the whole pair, as every eighth is in the full 32:
all 32 do not fit in 2 GB of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
    Qwen2_5OmniVisionEncoderConfig,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniVisionEncoder
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model.config import VisionConfig
from model.cpu_linear import prepack
from model.image import Grid, image_patches, normalize
from model.vision_encoder import VisionEncoder

Case = tuple[Callable[[], object], Callable[[], object]]

SMALL = {
    "depth": 8,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_heads": 6,
    "out_hidden_size": 576,
    "fullatt_block_indexes": (3, 7),
}
PUBLISHED = {
    "depth": 4,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (3,),
}


def encoder(
    sizes: dict[str, int | tuple[int, ...]],
    clips: list[tuple[int, int, int]],
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Encode clips of (frame pairs, patches down, patches across)."""
    torch.manual_seed(0)
    full = list(sizes["fullatt_block_indexes"])  # type: ignore[arg-type]  # the only tuple
    reference = Qwen2_5OmniVisionEncoder._from_config(
        Qwen2_5OmniVisionEncoderConfig(**(sizes | {"fullatt_block_indexes": full}))
    )
    reference.eval().requires_grad_(False).to(dtype)
    for parameter in reference.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    with torch.device("meta"):
        ours = VisionEncoder(VisionConfig(**sizes))  # type: ignore[arg-type]
    ours.load_state_dict(reference.state_dict(), assign=True)
    prepack(ours)  # as loading does
    grids = [Grid(h, w) for t, h, w in clips for _ in range(t)]
    patches = torch.randn(sum(grid.num_patches for grid in grids), 1176)
    return partial(ours, patches, grids), partial(reference, patches, torch.tensor(clips))


def picture(height: int, width: int) -> Case:
    """Prepare one picture, from RGB to normalised patches."""
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(frame)
    reference = Qwen2VLImageProcessorPil()
    return (
        lambda: normalize(image_patches(frame).values),
        lambda: reference(image, return_tensors="pt"),
    )


CASES: dict[str, Callable[[], Case]] = {
    "small, 1 pair 2x2": partial(encoder, SMALL, [(1, 2, 2)]),
    "small, 1 pair 6x6": partial(encoder, SMALL, [(1, 6, 6)]),
    "small, 1 pair 20x28 (240x320)": partial(encoder, SMALL, [(1, 20, 28)]),
    "small, 1 pair 34x46 (480x640)": partial(encoder, SMALL, [(1, 34, 46)]),
    "small, 4 sessions 20x28": partial(encoder, SMALL, [(1, 20, 28)] * 4),
    "small bf16, 1 pair 34x46": partial(encoder, SMALL, [(1, 34, 46)], torch.bfloat16),
    "published, 1 pair 6x6": partial(encoder, PUBLISHED, [(1, 6, 6)]),
    "published, 1 pair 20x28": partial(encoder, PUBLISHED, [(1, 20, 28)]),
    "published bf16, 1 pair 20x28": partial(encoder, PUBLISHED, [(1, 20, 28)], torch.bfloat16),
    "picture 480x640": partial(picture, 480, 640),
    "picture 720x1280": partial(picture, 720, 1280),
}
