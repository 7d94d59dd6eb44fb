"""What a vision encoder is told before anybody asks it: what lies in each row's square, and what belongs together.

`Vocabulary` asks rows for the words of what lies there, `Figures` asks early layers for figure and ground. Neither is
shipped. Why: docs/decisions/0013.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image import normalize
from recipes.tiny import tree
from recipes.tiny.scenes import COLOURS, COLUMNS, NUMBERS, ROWS, SHAPES, SIGNS

if TYPE_CHECKING:
    from model.image import Patches
    from model.vision_encoder import VisionEncoder
    from recipes.tiny.frozen import FrozenThinker
    from recipes.tiny.scenes import Box, Scene

SIDE = 28  # pixels of a row
SIGNAL, MAX_GAIN = 160, 12.0  # directions in a patch that are not noise; gain of the first layer
DRAWN_AFTER, PLACED_AFTER = 2, 4  # layers
GRAIN = 7  # squares along a patch
COSINE_SCALE = 40.0  # a row says up to seven things at once
BLANK = 0.15  # most rows show nothing; both sides count alike
# What a row may say, and the words for it; after them comes "nothing", which is learned. "way" is where it goes.
WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "kind": (*SHAPES, *SIGNS),
    "column": COLUMNS,
    "row": ROWS,
    "number": NUMBERS[1:],
    "moves": ("moving",),
    "way": ("right", "left", "bottom", "top"),
}


class Vocabulary(nn.Module):
    """The words a row may mean, as unit vectors. Not shipped."""

    def __init__(self, source: FrozenThinker) -> None:
        super().__init__()
        table = source.thinker.model.embed_tokens.weight.detach().float()
        mean = table[:: 1 + len(table) // 4096].mean(0)
        for name, words in WORDS.items():
            first = [source.tokenizer.encode(w if w.isdigit() else f" {w}")[0] for w in words]
            directions = F.normalize((table[first] - mean)[:, : tree.SOURCE_HIDDEN], dim=1)
            self.register_buffer(name, directions)
        self.nothing = nn.Parameter(torch.randn(len(WORDS), tree.SOURCE_HIDDEN))

    def loss(self, rows: Tensor, facts: Tensor, owner: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of rows [N, H] against numbers of words [N, len(WORDS)] (-1: not asked).

        What kind a thing is, its rows (`owner` [N], -1: nobody's) say together: one of them may see but an edge.
        """
        rows = F.normalize(rows[:, : tree.SOURCE_HIDDEN].float(), dim=1)
        nothing = F.normalize(self.nothing, dim=1)
        loss, figures = rows.new_zeros(()), {}
        for i, name in enumerate(WORDS):
            said, told = (
                (rows, facts[:, i]) if name != "kind" else together(rows, facts[:, i], owner)
            )
            asked, words = told >= 0, self.get_buffer(name)
            if not asked.any():
                continue
            wanted = told[asked]
            logits = COSINE_SCALE * said[asked] @ torch.cat([words, nothing[i : i + 1]]).T
            weight = torch.ones(len(words) + 1, device=rows.device)
            weight[-1] = BLANK
            loss = loss + F.cross_entropy(logits, wanted, weight)
            is_thing = wanted < len(words)
            if is_thing.any():
                right = logits.argmax(1) == wanted
                figures[name] = right[is_thing].float().mean().item()
        return loss, figures


def sharpen(encoder: VisionEncoder, pairs: list[Patches]) -> None:
    """Raise the first layer's answers to what differs inside patches, each by what it lacks beside the mean colour.

    In pictures that colour is fifty times as large as the rest, which is lost in the noise of a fresh encoder.
    """
    weight = encoder.patch_embed.proj.weight
    patches = torch.cat([normalize(p.values, encoder.settings) for p in pairs]).double()
    variance, directions = torch.linalg.eigh(torch.cov(patches.T))
    variance, directions = variance.flip(0), directions.flip(1)
    gain = (0.3 * (variance[2] / variance).sqrt()).clamp(1, MAX_GAIN)
    gain[:3], gain[SIGNAL:] = 1.0, 0.5  # mean red, green and blue; noise
    raised = directions @ torch.diag(gain) @ directions.T
    weight.copy_((weight.flatten(1).double() @ raised.to(weight.device)).view_as(weight))


def together(rows: Tensor, facts: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The mean direction of each thing's rows [things, H], and its fact [things]."""
    owned = owner >= 0
    num_things = int(owner.max()) + 1
    summed = rows.new_zeros(num_things, rows.shape[1]).index_add(0, owner[owned], rows[owned])
    told = facts.new_full((num_things,), -1).index_copy(0, owner[owned], facts[owned])
    return F.normalize(summed, dim=1), told


class Figures(nn.Module):
    """Tells from an early layer what in each patch belongs to a thing, and from a later one where in it that lies.

    Shapes come in all colours on all backgrounds, in every size and place; an encoder that was only told their names
    was still blind to them when it knew all colours and places. Not shipped.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.drawn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, GRAIN**2))
        self.place = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self._seen: dict[int, Tensor] = {}
        for layer in (DRAWN_AFTER, PLACED_AFTER):
            encoder.blocks[layer - 1].register_forward_hook(partial(self._keep, layer))

    def _keep(self, layer: int, block: nn.Module, inputs: object, output: Tensor) -> None:
        del block, inputs
        self._seen[layer] = output

    def loss(self, figures: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """How wrong the encoder has just been about figures [N, 3, 14, 14] in 0 … 1, which come in the given order."""
        figures = figures.view(len(order), -1)[order].view(figures.shape)
        coarse = F.adaptive_avg_pool2d(figures[:, :1], GRAIN).flatten(1)
        drawn = self.drawn(self._seen[DRAWN_AFTER].float())
        middle = figures.shape[-1] // 2
        place = figures[:, 1:, middle, middle]
        inside = (place > 0).all(1)
        placed = self.place(self._seen[PLACED_AFTER].float())
        return (
            F.binary_cross_entropy_with_logits(drawn.float(), coarse),
            F.smooth_l1_loss(placed[inside].float(), place[inside], beta=0.1),
        )


def pair_facts(seen: Scene, pair: int, patches: Patches) -> tuple[Tensor, Tensor]:
    """What lies at the middle of each row's square.

    As numbers of `WORDS`, int64 [rows, len(WORDS)], -1 not asked; and the number of the thing [rows], -1 none.
    """
    height, width = patches.grid_h // 2, patches.grid_w // 2
    owner = torch.full((height, width), -1)
    facts = torch.full((height, width, len(WORDS)), -1)
    names = list(WORDS)
    facts[..., names.index("colour")] = len(WORDS["colour"])
    is_video = len(seen.frames) > 1
    for frame in seen.boxes[2 * pair : 2 * pair + 2]:
        for number, (thing, box) in enumerate(zip(seen.things, frame, strict=True)):
            told = {"colour": thing.colour, "kind": thing.kind}
            if is_video:
                told |= {"moves": "moving", "way": seen.way}
            else:
                alike = [t.kind for t in seen.things].count(thing.kind)
                told |= {
                    "column": COLUMNS[thing.column],
                    "row": ROWS[thing.row],
                    "number": NUMBERS[alike],
                }
            where = _covered(box, height, width)
            owner[where], area = number, facts[where]
            for name, word in told.items():
                area[..., names.index(name)] = WORDS[name].index(word)
            if not is_video:
                area[..., names.index("moves")] = len(WORDS["moves"])
    return facts.flatten(0, 1), owner.flatten()


def _covered(box: Box, height: int, width: int) -> tuple[slice, slice]:
    x, y, side = box
    return _covered_along(y, side, height), _covered_along(x, side, width)


def _covered_along(start: float, side: float, count: int) -> slice:
    """Squares whose middle lies inside, and the one in the middle of a thing smaller than that."""
    first = round((start + 0.1 * side) / SIDE)
    last = round((start + 0.9 * side) / SIDE)
    middle = int((start + side / 2) / SIDE)
    return slice(max(0, min(first, middle)), min(count, max(last, middle + 1)))
