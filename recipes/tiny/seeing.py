"""Train the vision encoder, so that a picture works for the frozen language model like words about it.

First it is told, for each row (a square of 28 pixels), which thing lies there: the row's direction has to be that of
the words for its colour and its kind. Then the language model answers questions about the scene, and the loss on its
replies reaches the encoder through it; nothing else is trained, so typed and spoken turns stay as they were.

    python -m recipes.tiny.seeing --out ~/.cache/parley/tiny/seeing --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image import image_patches, pair_patches
from model.rope import Timeline
from recipes.tiny import loop, tree
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.hearing import COSINE_SCALE, ROW_STD
from recipes.tiny.scenes import COLOURS, SHAPES, SIGNS, Scene, scene
from recipes.tiny.turns import closing, opening

if TYPE_CHECKING:
    import numpy as np

    from model.image import Patches

TRAIN_SEED, KEPT_OUT_SEED = 41, 905
MAX_QUESTIONS = 3
SIDE = 28  # pixels of a row


class Vocabulary(nn.Module):
    """The words a row may mean, as unit vectors; the last of each kind is "nothing" and learned. Not shipped."""

    def __init__(self, source: FrozenThinker) -> None:
        super().__init__()
        self.colours = list(COLOURS)
        self.kinds = [*SHAPES, *SIGNS]
        table = source.thinker.model.embed_tokens.weight.detach().float()
        mean = table[:: 1 + len(table) // 4096].mean(0)

        def directions(words: list[str]) -> Tensor:
            first = [source.tokenizer.encode(w if w.isdigit() else f" {w}")[0] for w in words]
            return F.normalize((table[first] - mean)[:, : tree.SOURCE_HIDDEN], dim=1)

        self.register_buffer("colour_words", directions(self.colours))
        self.register_buffer("kind_words", directions(self.kinds))
        self.nothing = nn.Parameter(torch.randn(2, tree.SOURCE_HIDDEN))

    def loss(self, rows: Tensor, colours: Tensor, kinds: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of rows [N, H] against the colour and the kind of what lies there [N]."""
        rows = F.normalize(rows[:, : tree.SOURCE_HIDDEN].float(), dim=1)
        loss, figures = rows.new_zeros(()), {}
        nothing = F.normalize(self.nothing, dim=1)
        for name, words, blank, wanted in (
            ("colour", self.colour_words, nothing[:1], colours),
            ("kind", self.kind_words, nothing[1:], kinds),
        ):
            logits = COSINE_SCALE * rows @ torch.cat([words, blank]).T
            # Most rows show nothing; both sides count alike.
            weight = torch.ones(len(words) + 1, device=rows.device)
            weight[-1] = 0.15
            loss = loss + F.cross_entropy(logits, wanted, weight)
            is_thing = wanted < len(words)
            right = (logits.argmax(1) == wanted)[is_thing].float().mean()
            figures[name] = right.item()
        return loss, figures


class SeeingStage:
    shipped: tuple[str, ...] = ("visual",)

    def __init__(
        self, source: FrozenThinker, *, batch: int, lr: float, ask_after: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.source, self.thinker = source, source.thinker
        self.batch, self.lr, self.ask_after = batch, lr, ask_after
        self.encoder = self.thinker.visual.float().requires_grad_(True)
        last = self.encoder.merger.mlp[2]
        nn.init.normal_(last.weight, std=ROW_STD * last.in_features**-0.5)
        nn.init.zeros_(last.weight[tree.SOURCE_HIDDEN :])  # pictures spell nothing
        self.words = Vocabulary(source).to(source.device)
        self.parts: dict[str, nn.Module] = {"visual": self.encoder, "words": self.words}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "all": torch.optim.AdamW(
                [*self.encoder.parameters(), *self.words.parameters()],
                lr,
                betas=(0.9, 0.98),
                weight_decay=0.02,
                fused=True,
            )
        }
        self.kept_out = [scene(KEPT_OUT_SEED, i, kept_out=True) for i in range(32)]

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        asks = step >= self.ask_after
        # Pointing costs a fiftieth of asking.
        count = self.batch if asks else 4 * self.batch
        first = int(rng.integers(1 << 50))
        moving = 0.3 if asks else 0.0
        scenes = [scene(TRAIN_SEED, first + i, moving=moving) for i in range(count)]
        with loop.half_precision(self.source.device):
            loss, figures = self._loss(scenes, asks=asks)
        optimizer = self.optimizers["all"]
        loop.warm_up(optimizer, step, self.lr, 200)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        optimizer.step()
        return figures

    def validate(self) -> dict[str, float]:
        """Losses on kept-out renderings."""
        with loop.half_precision(self.source.device):
            parts = [
                self._loss(self.kept_out[i : i + 8], asks=True)[1]
                for i in range(0, len(self.kept_out), 8)
            ]
        figures = {k: sum(p[k] for p in parts) / len(parts) for k in parts[0]}
        return {"score": figures["answer"] + 0.1 * figures["point"], **figures}

    def _loss(self, scenes: list[Scene], *, asks: bool) -> tuple[Tensor, dict[str, float]]:
        pairs = [self._pairs(s) for s in scenes]
        encoded = self.encoder.encode_pairs([p for own in pairs for p in own])
        rows, at = [], 0
        for own in pairs:
            rows.append(encoded[at : at + len(own)])
            at += len(own)
        still = [i for i, s in enumerate(scenes) if len(s.frames) == 1]
        point, figures = encoded[0].new_zeros(()), {}
        if still:
            targets = [self._targets(scenes[i], pairs[i][0]) for i in still]
            colours, kinds = (torch.cat([t[k] for t in targets]) for k in (0, 1))
            point, figures = self.words.loss(
                torch.cat([rows[i][0] for i in still]),
                colours.to(self.source.device),
                kinds.to(self.source.device),
            )
        figures["point"] = point.item()
        if not asks:
            return point, figures
        answer = self._answers(scenes, pairs, rows)
        figures["answer"] = answer.item()
        return answer + 0.1 * point, figures

    def _pairs(self, seen: Scene) -> list[Patches]:
        settings = self.encoder.settings
        if len(seen.frames) == 1:
            return [image_patches(seen.frames[0], settings)]
        frames = seen.frames
        return [
            pair_patches(a, b, settings=settings)
            for a, b in zip(frames[::2], frames[1::2], strict=True)
        ]

    def _targets(self, seen: Scene, patches: Patches) -> tuple[Tensor, Tensor]:
        """Which colour and which kind lies at the middle of each row's square."""
        height, width = patches.grid_h // 2, patches.grid_w // 2
        colours = torch.full((height, width), len(self.words.colours))
        kinds = torch.full((height, width), len(self.words.kinds))
        for thing, (x, y, side) in zip(seen.things, seen.boxes, strict=True):
            rows = _covered(y, side, height)
            columns = _covered(x, side, width)
            colours[rows, columns] = self.words.colours.index(thing.colour)
            kinds[rows, columns] = self.words.kinds.index(thing.kind)
        return colours.flatten(), kinds.flatten()

    def _answers(
        self, scenes: list[Scene], pairs: list[list[Patches]], rows: list[list[Tensor]]
    ) -> Tensor:
        """Cross-entropy of the replies, given the pictures."""
        talks = [self._talk(s, p, r) for s, p, r in zip(scenes, pairs, rows, strict=True)]
        positions = nn.utils.rnn.pad_sequence([p.T for _, p, _ in talks], batch_first=True)
        embedded = nn.utils.rnn.pad_sequence([x for x, _, _ in talks], batch_first=True)
        hidden = self.thinker.model.whole(embedded, positions.permute(2, 0, 1))
        return self.source.said_loss(hidden, [said for _, _, said in talks])

    def _talk(
        self, seen: Scene, pairs: list[Patches], rows: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A conversation about a scene: rows [T, H], positions [3, T], tokens that are to be said [T] (-1: none)."""
        source, config, tokenizer = self.source, self.thinker.config, self.source.tokenizer
        timeline = Timeline.for_config(config)
        embedded, positions, said = [], [], []

        def add(x: Tensor, at: Tensor, tokens: list[int] | None = None) -> None:
            embedded.append(x.to(source.dtype))
            positions.append(at)
            said.extend(tokens or [-1] * len(x))

        def add_text(tokens: list[int], *, is_said: bool = False) -> None:
            add(source.embed(tokens), timeline.text(len(tokens)), tokens if is_said else None)

        add_text(opening(tokenizer))
        add(source.embed([config.vision_start_token_id]), timeline.open_segment(with_audio=False))
        for i, (patches, own) in enumerate(zip(pairs, rows, strict=True)):
            add(own, timeline.pair(i, patches.grid_h // 2, patches.grid_w // 2))
        add(source.embed([config.vision_end_token_id]), timeline.close_segment())
        for i, question in enumerate(seen.questions[:MAX_QUESTIONS]):
            again = opening(tokenizer) if i else []
            add_text([*again, *tokenizer.encode(question.text), *closing(tokenizer)])
            add_text([*tokenizer.encode(question.reply), tokenizer.im_end_id], is_said=True)
            add_text(tokenizer.encode("\n"))
        device = source.device
        return (
            torch.cat(embedded),
            torch.cat(positions, 1).to(device),
            torch.tensor(said, device=device),
        )


def _covered(start: float, side: float, count: int) -> slice:
    """Squares whose middle lies inside, and the one in the middle of a thing smaller than that."""
    first = round((start + 0.1 * side) / SIDE)
    last = round((start + 0.9 * side) / SIDE)
    middle = int((start + side / 2) / SIDE)
    return slice(max(0, min(first, middle)), min(count, max(last, middle + 1)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=60_000, batch=8)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the assembled checkpoint")
    parser.add_argument("--ask-after", type=int, default=3_000, help="steps of pointing alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = FrozenThinker.load(args.checkpoint, args.device, torch.bfloat16)
    stage = SeeingStage(
        source, batch=args.batch, lr=args.lr or 1e-3, ask_after=args.ask_after, seed=args.seed
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
