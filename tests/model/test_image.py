"""Pictures to patches, against the reference's own code, Pillow, and loops that spell the layout
out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as reference_resize,
)

from model.image import (
    IMAGE_LIMITS,
    PUBLISHED,
    REFERENCE_IMAGE_LIMITS,
    VIDEO_LIMITS,
    Grid,
    ImageError,
    ImageSettings,
    PixelLimits,
    image_patches,
    normalize,
    pair_patches,
    sample_frames,
    sample_frames_spread,
    smart_resize,
    video_grid,
)

# No lower limit worth the name, so that small test pictures stay small.
SMALL = ImageSettings(image=PixelLimits(1, 10**6), video=PixelLimits(1, 10**6))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Like a photograph: no detail at the scale of a pixel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17), np.cos(x / 23 - y / 11), np.sin((x + y) / 31)]
    return (127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "limits", "rows"),
    [
        (480, 640, IMAGE_LIMITS, 391),
        (480, 640, VIDEO_LIMITS, 391),
        (720, 1280, IMAGE_LIMITS, 1196),
        (720, 1280, VIDEO_LIMITS, 720),
        (240, 320, VIDEO_LIMITS, 140),
        (1, 1, IMAGE_LIMITS, 4),
    ],
)
def test_known_sizes_give_known_numbers_of_rows(height, width, limits, rows):
    h, w = smart_resize(height, width, limits)
    assert (h % 28, w % 28, h * w // 784) == (0, 0, rows)


def test_ties_round_to_the_even_multiple():
    free = PixelLimits(1, 10**9)
    assert [smart_resize(n, 70, free)[0] for n in (42, 70, 98, 126)] == [56, 56, 112, 112]


@settings(max_examples=300)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([IMAGE_LIMITS, VIDEO_LIMITS, REFERENCE_IMAGE_LIMITS, PixelLimits(1, 784)]),
)
def test_size_is_the_references_or_both_refuse(height, width, limits):
    try:
        expected = reference_resize(height, width, 28, limits.min_pixels, limits.max_pixels)
    except ValueError:
        with pytest.raises(ImageError, match="elongated"):
            smart_resize(height, width, limits)
        return
    assert smart_resize(height, width, limits) == expected
    assert min(expected) >= 28


def test_elongated_and_empty_pictures_are_refused_with_facts():
    assert smart_resize(1, 200, VIDEO_LIMITS) == (28, 4480)
    with pytest.raises(ImageError, match=r"201x1 pixels.*at most 200; crop"):
        smart_resize(1, 201, VIDEO_LIMITS)
    for shape in ((0, 5, 3), (5, 0, 3)):
        with pytest.raises(ImageError, match="is empty"):
            image_patches(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("num_frames", "rows_per_frame"), [(4, 768), (299, 768), (400, 576), (768, 300)]
)
def test_long_clips_share_the_context_evenly(num_frames, rows_per_frame):
    assert PUBLISHED.for_clip(num_frames).video.max_pixels == pytest.approx(
        rows_per_frame * 784, abs=1
    )


def test_a_clips_share_never_falls_below_the_lower_limit():
    assert PUBLISHED.for_clip(100_000).video == PixelLimits(
        VIDEO_LIMITS.min_pixels, int(1.05 * VIDEO_LIMITS.min_pixels)
    )


@pytest.mark.parametrize("size", [(96, 90), (96, 140), (61, 128), (140, 128)])
def test_resizing_one_axis_is_pillows_to_one_level(size):
    # 1: weights are rounded to 15 bits here and 22 bits there, so a sum close to a half level can
    # fall either way.
    frame = noise(96, 128)
    ours = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None], size, mode="bicubic", antialias=True
    )
    assert levels_apart(ours[0], pillow(frame, *size)) <= 1


@pytest.mark.parametrize(("height", "width"), [(96, 128), (61, 67), (300, 170)])
def test_resizing_noise_is_pillows_horizontal_then_vertical_pass(height, width):
    # Noise is the worst case: the order of the passes matters there by up to 26 levels, because
    # each is cut to 0…255. 2: one level from each pass, as above.
    frame = noise(height, width)
    patches = pair_patches(frame, settings=SMALL)
    h, w = patches.grid_h * 14, patches.grid_w * 14
    expected = pillow(np.asarray(pillow(frame, height, w)), h, w)
    assert levels_apart(picture_of(patches), expected) <= 2


def pillow(frame: np.ndarray, height: int, width: int) -> Image.Image:
    return Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)


def levels_apart(ours: torch.Tensor, theirs: Image.Image) -> int:
    return int(np.abs(ours.permute(1, 2, 0).int().numpy() - np.asarray(theirs, np.int32)).max())


def picture_of(patches, frame: int = 0) -> torch.Tensor:
    """Put a pair's patches together again: uint8 [3, H, W]."""
    h, w = patches.grid_h // 2, patches.grid_w // 2
    blocks = patches.values.view(h, w, 2, 2, 3, 2, 14, 14)[..., frame, :, :]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * 28, w * 28)


@pytest.mark.parametrize(
    ("frame", "tolerance"),
    [
        # Nothing to resize: only the order of scaling and subtracting differs, so float32 rounding
        # remains.
        (noise(56, 84), 2e-6),
        # One level is 0.0149 after normalisation (1 / 255 / 0.2613); Pillow may run its two passes
        # in the other order.
        (smooth(61, 130), 0.031),
        (smooth(400, 300), 0.031),
        (smooth(1, 1), 0.031),
        (smooth(13, 1300), 0.031),
    ],
)
def test_an_image_becomes_what_the_reference_makes_of_it(frame, tolerance):
    reference = Qwen2VLImageProcessorPil(
        size={"shortest_edge": IMAGE_LIMITS.min_pixels, "longest_edge": IMAGE_LIMITS.max_pixels}
    )(Image.fromarray(frame), return_tensors="pt")
    ours = image_patches(frame)
    assert [[1, ours.grid_h, ours.grid_w]] == reference["image_grid_thw"].tolist()
    torch.testing.assert_close(
        normalize(ours.values), reference["pixel_values"], atol=tolerance, rtol=0
    )


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_patches_hold_channel_frame_y_x_in_blocks_of_four(rows_h, rows_w, is_odd):
    a, b = noise(rows_h * 28, rows_w * 28, seed=1), noise(rows_h * 28, rows_w * 28, seed=2)
    patches = pair_patches(a, None if is_odd else b, settings=SMALL)
    frames = (a, a if is_odd else b)
    expected = [
        [
            frames[t][y0 + y, x0 + x, c]
            for c in range(3)
            for t in range(2)
            for y in range(14)
            for x in range(14)
        ]
        for i in range(rows_h)
        for j in range(rows_w)
        for y0 in (i * 28, i * 28 + 14)
        for x0 in (j * 28, j * 28 + 14)
    ]
    assert patches.grid == Grid(2 * rows_h, 2 * rows_w)
    assert np.array_equal(patches.values.numpy(), np.array(expected))


@pytest.mark.parametrize(("num_frames", "height", "width"), [(4, 61, 333), (3, 240, 320)])
def test_pixels_are_bit_equal_to_the_torchvision_processors(num_frames, height, width):
    pytest.importorskip("torchvision")
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    frames = [noise(height, width, seed=i) for i in range(num_frames)]
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    video = Qwen2VLVideoProcessor()(clip, return_tensors="pt", cap_pixels_per_frame=False)
    second = [*frames[1::2], None] if num_frames % 2 else frames[1::2]
    pairs = [pair_patches(a, b) for a, b in zip(frames[::2], second, strict=True)]
    ours = torch.cat([normalize(pair.values) for pair in pairs])
    assert torch.equal(ours, video["pixel_values_videos"])

    limits = {"shortest_edge": IMAGE_LIMITS.min_pixels, "longest_edge": IMAGE_LIMITS.max_pixels}
    image = Qwen2VLImageProcessor(size=limits)(clip[0], return_tensors="pt")
    assert torch.equal(normalize(image_patches(frames[0]).values), image["pixel_values"])


def test_an_image_is_two_identical_frames():
    patches = image_patches(noise(50, 90))
    assert torch.equal(picture_of(patches, 0), picture_of(patches, 1))


def test_every_frame_of_a_segment_takes_the_first_ones_grid():
    grid = video_grid(noise(480, 640))
    assert grid == Grid(34, 46)
    for frame in (noise(240, 320), noise(640, 480), noise(1, 1)):
        assert pair_patches(frame, noise(480, 640), grid=grid).grid == grid


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_every_small_size_works(height, width):
    patches = image_patches(noise(height, width))
    assert patches.values.shape == (patches.grid.num_patches, 1176)
    assert patches.grid_h % 2 == patches.grid_w % 2 == 0


def test_grey_is_three_equal_channels():
    grey = noise(30, 40, 1)
    for frame in (grey, grey[..., 0]):
        expected = image_patches(np.repeat(grey, 3, axis=-1))
        assert torch.equal(image_patches(frame).values, expected.values)


def test_transparency_is_laid_on_white_as_pillow_does_it():
    rgba = noise(56, 56, 4)
    white = Image.new("RGB", (56, 56), (255, 255, 255))
    white.paste(Image.fromarray(rgba), mask=Image.fromarray(rgba[..., 3]))
    assert torch.equal(image_patches(rgba).values, image_patches(np.array(white)).values)


def test_memory_layout_does_not_matter():
    frame = noise(60, 100)
    expected = image_patches(frame).values
    read_only = frame.copy()
    read_only.flags.writeable = False
    flipped = np.ascontiguousarray(frame[:, ::-1])[:, ::-1]
    for same in (read_only, flipped, torch.from_numpy(frame), np.asfortranarray(frame)):
        assert torch.equal(image_patches(same).values, expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((28, 28, 3), np.float32), "must be uint8.*float32; multiply by 255"),
        (np.zeros((28, 28, 2), np.uint8), r"not \[28, 28, 2\]"),
        (np.zeros((2, 28, 28, 3), np.uint8), r"not \[2, 28, 28, 3\]"),
        (torch.zeros(28, 28, 3, dtype=torch.uint8, device="meta"), "on the CPU, not on meta"),
    ],
)
def test_what_is_not_a_picture_is_refused(frame, message):
    with pytest.raises(ImageError, match=message):
        pair_patches(frame)


def test_normalisation_is_bit_equal_to_the_references_formula():
    values = image_patches(noise(56, 56)).values
    mean = torch.tensor(PUBLISHED.image_mean) * (1 / (1 / 255))
    std = torch.tensor(PUBLISHED.image_std) * (1 / (1 / 255))
    expected = (values.float().view(-1, 3, 392) - mean[:, None]) / std[:, None]
    assert torch.equal(normalize(values), expected.view(-1, 1176))


@settings(max_examples=300)
@given(st.integers(2, 20_000), st.sampled_from([1.0, 2.0, 24.0, 25.0, 29.97, 30.0, 60.0]))
def test_frames_are_sampled_by_the_references_rule(num_frames, rate):
    n = math.floor(min(max(num_frames / rate * 2, 4), num_frames // 2 * 2, 768, num_frames) / 2) * 2
    ours = sample_frames(num_frames, rate)
    assert len(ours) == n
    # 1: the reference steps in float32, which falls below a whole number now and then; ours is
    # exact.
    theirs = torch.arange(0, num_frames, num_frames / n, dtype=torch.float64)[:n].int().tolist()
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
    assert ours == sorted(set(ours))


def test_sampling_takes_what_a_live_capture_sees():
    assert sample_frames(300, 30.0) == list(range(0, 300, 15))


@pytest.mark.parametrize(
    ("num_frames", "rate"), [(300, 30.0), (2, 30.0), (31, 25.0), (9000, 29.97)]
)
def test_spread_sampling_is_the_published_rule(num_frames, rate):
    ours = sample_frames_spread(num_frames, rate)
    expected = torch.linspace(0, num_frames - 1, len(ours), dtype=torch.float64).round().int()
    assert ours == expected.tolist()
    assert (ours[0], ours[-1]) == (0, num_frames - 1)


@pytest.mark.parametrize(
    ("num_frames", "rate"), [(1, 30.0), (0, 30.0), (10, 0.0), (10, float("nan"))]
)
def test_clips_that_cannot_be_sampled_are_refused(num_frames, rate):
    with pytest.raises(ImageError, match="cannot be sampled"):
        sample_frames(num_frames, rate)


def test_a_checkpoints_file_sets_image_limits_and_leaves_video_alone():
    published = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
    assert ImageSettings.from_json(published) == PUBLISHED
    newer = {"size": {"shortest_edge": 1000, "longest_edge": 9000}, "image_std": [0.5, 0.5, 0.5]}
    read = ImageSettings.from_json(newer)
    assert (read.image, read.video) == (PixelLimits(1000, 9000), VIDEO_LIMITS)
    assert read.image_std == (0.5, 0.5, 0.5)


def test_a_file_for_video_sets_the_limits_of_frames():
    read = ImageSettings.from_json({}, {"min_pixels": 800, "max_pixels": 50_000})
    assert (read.image, read.video) == (PUBLISHED.image, PixelLimits(800, 50_000))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"min_pixels": 10, "max_pixels": 5}, "10…5"),
        ({"image_std": [0.5, 0.5]}, "red, green and blue"),
        ({"image_std": [0.5, 0.5, 0]}, "may be 0"),
        ({"patch_size": 0}, "must be positive"),
        ({"image_mean": 3}, "wrong kind"),
        ({"size": 224}, "wrong kind"),
        ({"min_pixels": "many"}, "wrong kind"),
    ],
)
def test_settings_that_cannot_work_are_refused(tree, message):
    with pytest.raises(ImageError, match=message):
        ImageSettings.from_json(tree)
