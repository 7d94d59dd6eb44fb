"""Video frames and images to patches: resize, cut into the order the vision encoder reads,
normalise.

All but `normalize` runs on the host, in whichever thread decoded the picture. The resize is the
reference's own: bicubic with antialiasing, on uint8, so every pixel of the result is a whole level
in 0…255 (half levels round up, after the horizontal pass and again after the vertical one).

    frame [H, W, 3] ──resize──▶ [14·grid_h, 14·grid_w] ──two frames──▶ values [grid_h·grid_w, 1176]

    patches of one frame pair, grid 4 x 6:      0  1 |  4  5 |  8  9
    (four consecutive ones become one row)      2  3 |  6  7 | 10 11
                                               12 13 | 16 17 | 20 21
                                               14 15 | 18 19 | 22 23
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

Frame = np.ndarray[Any, np.dtype[np.uint8]] | Tensor

MAX_ASPECT_RATIO = 200
FRAMES_PER_PAIR = 2
FRAMES_PER_SECOND = 2.0  # the rate the published models were trained at
MIN_FRAMES, MAX_FRAMES = 4, 768  # bounds of a sampled clip; a live stream has neither
MAX_VIDEO_TOKENS = 128_000


class ImageError(ValueError):
    """A picture, or a description of how to prepare one, that cannot be used; the message says what
    to change."""


@dataclass(frozen=True, slots=True)
class PixelLimits:
    """How many pixels a picture may have after resizing."""

    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ImageError(
                f"pixel limits {self.min_pixels}…{self.max_pixels} are not an "
                "interval of positive counts; min_pixels must be at least 1 and at most max_pixels"
            )


# What the published utility and preprocessor files use. transformers 5.23 has the same video
# limits, but its image class without a checkpoint's file allows 1280 rows at most.
IMAGE_LIMITS = PixelLimits(4 * 28**2, 16384 * 28**2)
VIDEO_LIMITS = PixelLimits(128 * 28**2, 768 * 28**2)
REFERENCE_IMAGE_LIMITS = PixelLimits(4 * 28**2, 1280 * 28**2)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How pictures are prepared for one checkpoint; the defaults are the published values."""

    image: PixelLimits = IMAGE_LIMITS
    video: PixelLimits = VIDEO_LIMITS
    patch_size: int = 14
    merge_size: int = 2
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.merge_size < 1:
            raise ImageError(
                f"patch_size {self.patch_size} and merge_size {self.merge_size} must be positive"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0 in self.image_std:
            raise ImageError(
                f"image_mean {list(self.image_mean)} and image_std {list(self.image_std)} must "
                "hold one value for red, green and blue, and no image_std may be 0"
            )

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that becomes one row; sizes are multiples of it."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(
        cls, tree: Mapping[str, Any], video: Mapping[str, Any] | None = None
    ) -> ImageSettings:
        """Build from the parsed trees of a checkpoint's `preprocessor_config.json` and, if it has
        one, `video_preprocessor_config.json`.

        The first one's pixel limits are for images: the published file allows 12.8 million pixels,
        and the published utility has shrunk video frames to `VIDEO_LIMITS` before the processor
        sees them. The second one's are for video frames; the published checkpoints lack it.

        Raises:
            ImageError: a value cannot be used, or the file pairs frames other than by two.
        """
        if (pair := tree.get("temporal_patch_size", FRAMES_PER_PAIR)) != FRAMES_PER_PAIR:
            raise ImageError(
                f"temporal_patch_size is {pair!r}; only {FRAMES_PER_PAIR} is supported"
            )
        published = cls()
        try:
            images, frames = _limits(tree, IMAGE_LIMITS), _limits(video or {}, VIDEO_LIMITS)
            patch, merge = (
                int(tree.get(k, getattr(published, k))) for k in ("patch_size", "merge_size")
            )
            mean, std = (
                tuple(map(float, tree.get(k, getattr(published, k))))
                for k in ("image_mean", "image_std")
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise ImageError(
                f"preprocessor_config.json has a value of the wrong kind: {error}"
            ) from None
        return cls(images, frames, patch, merge, mean, std)

    def for_clip(self, num_frames: int, max_video_tokens: int = MAX_VIDEO_TOKENS) -> ImageSettings:
        """Shrink the video limit so that a clip of known length fits its share of the context.

        Source: the published utility; transformers 5.23 does it only with `cap_pixels_per_frame`. A
        live stream has no known length and does not use this.
        """
        total_pixels = int(max_video_tokens * self.token_pixels**2 * 0.9)
        share = total_pixels * FRAMES_PER_PAIR // max(num_frames, 1)
        floor = int(self.video.min_pixels * 1.05)
        limit = max(min(self.video.max_pixels, share), floor)
        return replace(self, video=PixelLimits(self.video.min_pixels, limit))


PUBLISHED = ImageSettings()


@dataclass(frozen=True, slots=True)
class Grid:
    """Height and width of one frame pair, counted in patches."""

    h: int
    w: int

    @property
    def num_patches(self) -> int:
        return self.h * self.w


@dataclass(frozen=True, slots=True)
class Patches:
    """One frame pair, ready for the vision encoder.

    `values` is uint8 [grid_h · grid_w, 1176] on the CPU, block-major as drawn at the top of this
    file; within a patch the order is channel, frame, y, x. Levels stay levels until `normalize`, on
    the encoder's device: a pair of 480x640 is then 1.8 MB to keep and to copy instead of 7.4.
    """

    values: Tensor
    grid_h: int
    grid_w: int

    @property
    def grid(self) -> Grid:
        return Grid(self.grid_h, self.grid_w)


def smart_resize(
    height: int, width: int, limits: PixelLimits, factor: int = PUBLISHED.token_pixels
) -> tuple[int, int]:
    """Choose the size nearest to `height` x `width` that the encoder can take.

    Both sides become multiples of `factor`; the area is brought within `limits`, keeping the aspect
    ratio as well as whole multiples allow. Source: transformers 5.23. The published utility differs
    only below half a `factor`: it rounds such a side up to one `factor` first, where this (like
    5.23) enlarges the picture to `min_pixels`.

    Raises:
        ImageError: a side is not positive, or one side is more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise ImageError(f"a picture of {width}x{height} pixels is empty; send at least 1x1")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"a picture of {width}x{height} pixels is too elongated: its sides may differ by a "
            f"factor of at most {MAX_ASPECT_RATIO}; crop it"
        )
    # Python's round goes to the even multiple at a tie (42 px to 56, 70 px to 56), as the
    # reference's does.
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > limits.max_pixels:
        shrink = math.sqrt(height * width / limits.max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (height * width))
        h = math.ceil(height * grow / factor) * factor
        w = math.ceil(width * grow / factor) * factor
    return h, w


def video_grid(frame: Frame, settings: ImageSettings = PUBLISHED) -> Grid:
    """Decide the grid of a video segment from its first frame.

    Raises:
        ImageError: the frame cannot be used; see `smart_resize`.
    """
    height, width = _rgb(frame).shape[:2]
    return _grid(height, width, settings.video, settings)


def pair_patches(
    frame_a: Frame,
    frame_b: Frame | None = None,
    *,
    grid: Grid | None = None,
    settings: ImageSettings = PUBLISHED,
) -> Patches:
    """Prepare two successive frames of a video; without `frame_b`, the last odd frame, which is
    doubled.

    Frames are uint8 [H, W, 3], numpy or torch, on the CPU; grey and transparent ones are converted.
    All pairs of a video segment must share one grid: decide it with `video_grid` and pass it. A
    frame of another size is then resized to that grid as well. A camera that adapts its resolution
    keeps its shape, so nothing is lost; one that turns from portrait to landscape is squashed until
    the caller opens a new segment. Without `grid`, `frame_a` decides.

    Raises:
        ImageError: a frame cannot be used; the message says why.
    """
    grid = grid or video_grid(frame_a, settings)
    first = _resize(_rgb(frame_a), grid, settings)
    second = first if frame_b is None else _resize(_rgb(frame_b), grid, settings)
    return _patches(first, second, grid, settings)


def image_patches(frame: Frame, settings: ImageSettings = PUBLISHED) -> Patches:
    """Prepare a still image, which the encoder takes as a pair of identical frames.

    Raises:
        ImageError: as `pair_patches`.
    """
    rgb = _rgb(frame)
    height, width = rgb.shape[:2]
    grid = _grid(height, width, settings.image, settings)
    resized = _resize(rgb, grid, settings)
    return _patches(resized, resized, grid, settings)


def normalize(values: Tensor, settings: ImageSettings = PUBLISHED) -> Tensor:
    """Turn the levels of `Patches` [N, 1176] into the float32 numbers that the encoder was trained
    on."""
    # Scaling by 1/255 is folded into mean and deviation, as in the reference, so the floats agree
    # exactly. Python scalars keep this free of copies to the device.
    x = values.float().view(len(values), 3, -1)  # channel is the slowest axis of a patch
    for channel, (mean, std) in enumerate(
        zip(settings.image_mean, settings.image_std, strict=True)
    ):
        x[:, channel].sub_(_levels(mean)).div_(_levels(std))
    return x.view(len(values), -1)


def sample_frames(num_frames: int, frame_rate: float) -> list[int]:
    """Indices of the frames to take from a clip at two per second: `floor(i · num_frames / n)`.

    The rule of transformers 5.23; for a constant frame rate it picks the frames shown at 0, 0.5,
    1.0 … seconds, as a live capture does.

    Raises:
        ImageError: there are fewer than two frames, or the rate is not positive.
    """
    n = _sampled_count(num_frames, frame_rate)
    return [i * num_frames // n for i in range(n)]


def sample_frames_spread(num_frames: int, frame_rate: float) -> list[int]:
    """Like `sample_frames`, by the published utility's rule: spread evenly from the first frame to
    the last.

    Raises:
        ImageError: as `sample_frames`.
    """
    n = _sampled_count(num_frames, frame_rate)
    return [round(i * (num_frames - 1) / (n - 1)) for i in range(n)]


def _sampled_count(num_frames: int, frame_rate: float) -> int:
    if num_frames < FRAMES_PER_PAIR or not frame_rate > 0:
        raise ImageError(
            f"{num_frames} frames at {frame_rate} per second cannot be sampled; a clip needs at "
            f"least {FRAMES_PER_PAIR} frames and a positive rate (a single frame is an image)"
        )
    wanted = max(num_frames / frame_rate * FRAMES_PER_SECOND, MIN_FRAMES)
    return int(min(wanted, MAX_FRAMES, num_frames)) // FRAMES_PER_PAIR * FRAMES_PER_PAIR


def _limits(tree: Mapping[str, Any], default: PixelLimits) -> PixelLimits:
    size = tree.get("size") or {}
    return PixelLimits(
        int(tree.get("min_pixels") or size.get("shortest_edge", default.min_pixels)),
        int(tree.get("max_pixels") or size.get("longest_edge", default.max_pixels)),
    )


def _levels(fraction: float) -> float:
    return float(np.float32(fraction) * np.float32(255))


def _grid(height: int, width: int, limits: PixelLimits, settings: ImageSettings) -> Grid:
    h, w = smart_resize(height, width, limits, settings.token_pixels)
    return Grid(h // settings.patch_size, w // settings.patch_size)


def _rgb(frame: Frame) -> Tensor:
    """View or convert a frame as uint8 [H, W, 3]."""
    if frame.dtype not in (np.uint8, torch.uint8):
        raise ImageError(
            f"frames must be uint8 levels 0…255, not {frame.dtype}; multiply by 255 and round"
        )
    # torch wants writable memory, and a decoded picture often is not.
    x = (
        frame
        if isinstance(frame, Tensor)
        else torch.from_numpy(np.require(frame, None, ["C", "W"]))
    )
    if x.device.type != "cpu":
        raise ImageError(f"frames must be on the CPU, not on {x.device}; resizing uint8 runs there")
    if x.dim() == 2:
        x = x.unsqueeze(-1)
    if x.dim() != 3 or x.shape[-1] not in (1, 3, 4):
        raise ImageError(
            f"frames must have shape [height, width, 3] (or 1 or 4 channels), not {list(x.shape)}"
        )
    if x.shape[-1] == 1:
        return x.expand(-1, -1, 3)
    return _over_white(x) if x.shape[-1] == 4 else x


def _over_white(rgba: Tensor) -> Tensor:
    """Lay a transparent picture on white, as the published utility does, with its rounding."""
    alpha = rgba[..., 3:].int()
    sum_ = rgba[..., :3].int() * alpha + 255 * (255 - alpha) + 128
    return (((sum_ >> 8) + sum_) >> 8).to(torch.uint8)  # sum / 255, rounded


def _resize(rgb: Tensor, grid: Grid, settings: ImageSettings) -> Tensor:
    """uint8 [H, W, 3] to uint8 [3, patch · grid.h, patch · grid.w]."""
    size = (grid.h * settings.patch_size, grid.w * settings.patch_size)
    x = rgb.permute(2, 0, 1)
    if x.shape[1:] == size:
        return x
    # uint8 on the CPU is what the reference's torchvision backend does, bit for bit; via float the
    # result differs in about a fifth of the pixels of noise, because there the first pass is
    # neither rounded nor cut to 0…255.
    return F.interpolate(
        x.unsqueeze(0), size, mode="bicubic", align_corners=False, antialias=True
    ).squeeze(0)


def _patches(first: Tensor, second: Tensor, grid: Grid, settings: ImageSettings) -> Patches:
    p, m = settings.patch_size, settings.merge_size
    # Cut by numpy: it moves rows of 14 bytes more than twice as fast as torch does.
    values = np.empty((grid.h // m, grid.w // m, m, m, 3, FRAMES_PER_PAIR, p, p), np.uint8)
    for t, frame in enumerate((first, second)):
        blocks = frame.numpy().reshape(3, grid.h // m, m, p, grid.w // m, m, p)
        values[..., t, :, :] = blocks.transpose(1, 4, 2, 5, 0, 3, 6)
    return Patches(torch.from_numpy(values).view(grid.num_patches, -1), grid.h, grid.w)
