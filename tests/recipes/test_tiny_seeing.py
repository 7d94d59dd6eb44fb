"""What seeing is told about rows, and what its first layer answers to."""

from __future__ import annotations

import torch

from model.image import ImageSettings, PixelLimits, image_patches, normalize
from model.vision_encoder import VisionEncoder
from recipes.tiny import tree
from recipes.tiny.pointing import WORDS, pair_facts, sharpen, together
from recipes.tiny.scenes import COLOURS, changing, scene
from recipes.tiny.seeing import called_at

SETTINGS = ImageSettings(*[PixelLimits(*tree.PIXELS.values())] * 2)


def test_flat_patches_are_answered_as_before_and_edges_louder() -> None:
    torch.manual_seed(1)
    encoder = VisionEncoder(tree.config().thinker.vision, SETTINGS)
    pairs = [
        image_patches(scene(1, i, moving=0.0, small=1.0).frames[0], SETTINGS) for i in range(60)
    ]
    patches = torch.cat([normalize(p.values, SETTINGS) for p in pairs])
    levels = patches.view(len(patches), 3, -1).mean(2, keepdim=True)
    flat = levels.expand(-1, -1, patches.shape[1] // 3).flatten(1)
    before = [encoder.patch_embed(x) for x in (flat, patches - flat)]
    with torch.no_grad():
        sharpen(encoder, pairs)
    after = [encoder.patch_embed(x) for x in (flat, patches - flat)]
    changed = (after[0] - before[0]).square().mean() / before[0].square().mean()
    louder = after[1].square().mean() / before[1].square().mean()
    assert changed < 0.01
    assert louder > 2


def test_rows_are_told_what_lies_there() -> None:
    names = list(WORDS)
    for index in range(40):
        shown = scene(7, index, moving=0.0)
        patches = image_patches(shown.frames[0], SETTINGS)
        facts, owner = pair_facts(shown, 0, patches)
        assert len(facts) == patches.grid_h * patches.grid_w // 4
        for number, thing in enumerate(shown.things):
            own = facts[owner == number]
            assert len(own)
            assert {WORDS["colour"][i] for i in own[:, names.index("colour")]} == {thing.colour}
            assert {WORDS["kind"][i] for i in own[:, names.index("kind")]} == {thing.kind}
        nobody = facts[owner < 0]
        assert (nobody[:, names.index("colour")] == len(COLOURS)).all()
        assert (nobody[:, names.index("kind")] == -1).all()


def test_rows_of_a_thing_speak_together() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [0.0, -1.0]])
    said, told = together(rows, torch.tensor([7, 7, -1, 2]), torch.tensor([0, 0, -1, 1]))
    torch.testing.assert_close(said, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
    assert told.tolist() == [7, 2]


def test_a_call_is_heard_at_its_moment() -> None:
    shown = changing(3, 1)
    wave = called_at(shown, torch.ones(4000))
    assert len(wave) == len(shown.frames) * 8000
    assert shown.moment is not None
    assert wave.nonzero()[0].item() == int(shown.moment * 16_000)
