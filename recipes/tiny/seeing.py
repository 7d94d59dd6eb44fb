"""Train the vision encoder, so that a picture works for the frozen language model like words about it.

First it is told, for each row (a square of 28 pixels), what lies there: the row's direction has to agree with the words
for its colour, its kind, its place, how many of its kind there are, and where it goes. Then (`--ask-after`) the
language model answers questions about the scene (`showing.py`), typed or spoken into the camera's video, and says what
was shown when somebody called "now". The loss on its replies reaches the encoder through it. From then on the language
model may give way a little (`adapters.py`), and is held where it was in what it says to words alone (`holding.py`).

    python -m recipes.tiny.callers --shards 12 --about scenes && python -m recipes.tiny.callers --shards 1 --about now
    python -m recipes.tiny.seeing --out ~/.cache/parley/tiny/seeing --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.image import image_patches, pair_patches
from recipes.tiny import loop, tree
from recipes.tiny.adapters import Adapters
from recipes.tiny.callers import INPUT_RATE, Call, read_calls
from recipes.tiny.dataset import to_wave
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.hearing import ROW_STD
from recipes.tiny.holding import Holder
from recipes.tiny.pointing import Figures, Vocabulary, pair_facts, sharpen
from recipes.tiny.scenes import Scene, changing, scene
from recipes.tiny.showing import Showing, Talk, branch_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.image import Patches

    Sample = tuple[Call, NDArray[np.int16]]
    Shown = tuple[list[Patches], list[Tensor]]

TRAIN_SEED, KEPT_OUT_SEED = 41, 905
VALIDATED = 32
LOOKED_AT = 300  # pictures before the first step
MOVING, SMALL = 0.3, 0.8  # shares of the scenes; a small picture costs a third
POINTED = 6  # scenes that are pointed at for each one that is asked about
POINTING = 0.2  # weight beside answering
POINTED_SHARE = 0.5  # of the rate, left to the encoder while it answers
CALLED_OUT = 0.35  # steps with videos in which somebody calls; in all others somebody asks aloud
CALLS = 2  # such videos in a step
HELD = 0.4  # steps that hold the language model where it was
DRAWN, PLACED = 3.0, 10.0  # weights of figure and ground, and of the place in a thing


class SeeingStage:
    shipped: tuple[str, ...] = ("visual", "looking")

    def __init__(
        self,
        source: FrozenThinker,
        asked: list[Sample],
        called: list[Sample],
        chatted: list[Sample],
        *,
        batch: int,
        lr: float,
        ask_after: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.source, self.thinker, self.showing = source, source.thinker, Showing(source)
        self.batch, self.lr, self.ask_after = batch, lr, ask_after
        self.called, self.asked, self.is_asking = called, by_question(asked), False
        self.encoder = self.thinker.visual.float().requires_grad_(True)
        shown = [self._pairs(scene(TRAIN_SEED, i, small=1.0)) for i in range(LOOKED_AT)]
        with torch.no_grad():
            sharpen(self.encoder, [p for own in shown for p in own])
        # The stream through the layers stays exact; only products are rounded.
        self.encoder.patch_embed.register_forward_hook(lambda _, __, output: output.float())
        last = self.encoder.merger.mlp[2]
        nn.init.normal_(last.weight, std=ROW_STD * last.in_features**-0.5)
        nn.init.zeros_(last.weight[tree.SOURCE_HIDDEN :])  # pictures spell nothing
        self.adapters = Adapters.around(source)
        self.words = Vocabulary(source).to(source.device)
        self.figures = Figures(self.encoder).to(source.device)
        self.holder = Holder(source, self.adapters, self.showing, chatted)
        self.parts: dict[str, nn.Module] = {
            "visual": self.encoder,
            "looking": self.adapters,
            "words": self.words,
            "figures": self.figures,
        }
        rates = {"lr": lr, "betas": (0.9, 0.98), "fused": True}
        seen = [*self.encoder.parameters(), *self.words.parameters()]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "all": torch.optim.AdamW(seen, weight_decay=0.02, **rates),
            "looking": torch.optim.AdamW(self.adapters.parameters(), weight_decay=0.0, **rates),
            "figures": torch.optim.AdamW(self.figures.parameters(), weight_decay=0.0, **rates),
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        self.is_asking = step >= self.ask_after
        first = int(rng.integers(1 << 50))
        scenes = [
            scene(TRAIN_SEED, first + i, moving=MOVING, small=SMALL)
            for i in range(POINTED * self.batch)
        ]
        with loop.half_precision(self.source.device):
            loss, figures, shown = self._point(scenes)
            if self.is_asking:
                answer, more = self._ask(scenes[: self.batch], shown[: self.batch], TRAIN_SEED, rng)
                loss, figures = answer + POINTING * loss, figures | more
        for name, optimizer in self.optimizers.items():
            share = POINTED_SHARE if self.is_asking and name == "all" else 1.0
            loop.warm_up(optimizer, step, share * self.lr, 200)
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.encoder.parameters(), *self.adapters.parameters()], 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return figures

    def validate(self) -> dict[str, float]:
        """Losses on kept-out renderings."""
        parts = []
        for i in range(0, VALIDATED, 8):
            scenes = [scene(KEPT_OUT_SEED, i + k, kept_out=True) for k in range(8)]
            with loop.half_precision(self.source.device):
                _, figures, shown = self._point(scenes)
                if self.is_asking:
                    rng = np.random.default_rng(i)
                    figures |= self._ask(scenes, shown, KEPT_OUT_SEED, rng, everything=True)[1]
            parts.append(figures)
        names = {name for figures in parts for name in figures}
        found = {name: [p[name] for p in parts if name in p] for name in sorted(names)}
        figures = {name: sum(values) / len(values) for name, values in found.items()}
        asked = sum(figures.get(name, 3.0) for name in ("typed", "spoken", "called_out"))
        return {"score": asked + 0.1 * figures["point"], **figures}

    def _point(self, scenes: list[Scene]) -> tuple[Tensor, dict[str, float], list[Shown]]:
        """Loss of what each row says, and the pairs with their rows."""
        shown = self._encode(scenes)
        facts, owners, num_things = [], [], 0
        for seen, (pairs, _) in zip(scenes, shown, strict=True):
            for i, patches in enumerate(pairs):
                told, owner = pair_facts(seen, i, patches)
                facts.append(told)
                owners.append(torch.where(owner >= 0, owner + num_things, -1))
                num_things += len(seen.things)
        rows = torch.cat([x for _, own in shown for x in own])
        told, owner = (torch.cat(x).to(self.source.device) for x in (facts, owners))
        loss, right = self.words.loss(rows, told, owner)
        drawn, placed = self._figures(scenes, [pairs for pairs, _ in shown])
        figures = {"point": loss.item(), "drawn": drawn.item(), "placed": placed.item(), **right}
        return loss + DRAWN * drawn + PLACED * placed, figures, shown

    def _figures(self, scenes: list[Scene], pairs: list[list[Patches]]) -> tuple[Tensor, Tensor]:
        """Losses of what belongs to things in the second frame of each pair, and where in them it lies."""
        drawn = [
            pair_patches(figure, settings=self.encoder.settings)
            for seen in scenes
            for figure in (seen.figures[1::2] or seen.figures)
        ]
        side = self.encoder.settings.patch_size
        figures = torch.cat([p.values.view(-1, 3, 2, side, side)[:, :, 0] for p in drawn])
        grids = [p.grid for own in pairs for p in own]
        plan = self.encoder.plan(grids, torch.device(self.source.device))
        return self.figures.loss(figures.to(self.source.device).float() / 255, plan.order)

    def _encode(self, scenes: list[Scene]) -> list[Shown]:
        pairs = [self._pairs(s) for s in scenes]
        encoded = iter(self.encoder.encode_pairs([p for own in pairs for p in own]))
        return [(own, [next(encoded) for _ in own]) for own in pairs]

    def _pairs(self, seen: Scene) -> list[Patches]:
        settings, frames = self.encoder.settings, seen.frames
        if len(frames) == 1:
            return [image_patches(frames[0], settings)]
        return [
            pair_patches(a, b, settings=settings)
            for a, b in zip(frames[::2], frames[1::2], strict=True)
        ]

    def _ask(
        self,
        scenes: list[Scene],
        shown: list[Shown],
        seed: int,
        rng: np.random.Generator,
        *,
        everything: bool = False,
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of replies, given what was shown; and how far what is said to words alone has moved."""
        loss, figures = torch.zeros(()), dict[str, float]()
        is_called, is_held = rng.random() < CALLED_OUT, rng.random() < HELD
        if is_held or everything:
            loss = self.holder.loss(rng)
            figures["held"] = loss.item()
        talks = {
            "typed": [
                self.showing.typed(seen.questions, *own, system_prompt(rng))
                for seen, own in zip(scenes, shown, strict=True)
            ]
        }
        if everything or not is_called:
            talks["spoken"] = self._spoken(scenes, shown, rng)
        if everything or is_called:
            talks["called_out"] = [self._called_out(seed, rng) for _ in range(CALLS)]
        for name, own in talks.items():
            if own:
                answer, right = self._answers(own)
                loss = loss + answer
                figures |= {name: answer.item(), f"{name}_right": right}
        return loss, figures

    def _spoken(
        self, scenes: list[Scene], shown: list[Shown], rng: np.random.Generator
    ) -> list[Talk]:
        """Still scenes in front of a camera, each with a question that somebody has spoken."""
        talks = []
        for seen, (pairs, rows) in zip(scenes, shown, strict=True):
            known = [q for q in seen.questions if q.question in self.asked]
            if len(pairs) > 1 or not known:
                continue
            question = known[int(rng.integers(len(known)))]
            samples = self.asked[question.question]
            said = to_wave(samples[int(rng.integers(len(samples)))])
            before, after = (int(x * INPUT_RATE) for x in rng.uniform((0, 0.1), (1.2, 0.6)))
            wave = noisy(F.pad(said, (before, after)), rng)
            talks.append(
                self.showing.watched("", question.reply, pairs, rows, wave, system_prompt(rng))
            )
        return talks

    def _called_out(self, seed: int, rng: np.random.Generator) -> Talk:
        """Somebody calls while things change: what was shown then?"""
        is_kept_out = seed == KEPT_OUT_SEED
        seen = changing(seed, int(rng.integers(1 << 50)), small=SMALL, kept_out=is_kept_out)
        [(pairs, rows)] = self._encode([seen])
        _, pcm = self.called[int(rng.integers(len(self.called)))]
        wave = noisy(called_at(seen, to_wave(pcm)), rng)
        [asked] = seen.questions
        system = system_prompt(rng)
        return self.showing.watched(asked.question, asked.reply, pairs, rows, wave, system)

    def _answers(self, talks: list[Talk]) -> tuple[Tensor, float]:
        """Cross-entropy of the replies; and the share of replies without a wrong token."""
        pad = nn.utils.rnn.pad_sequence
        positions = pad([t.positions.T for t in talks], batch_first=True)
        embedded = pad([t.rows for t in talks], batch_first=True)
        branch = pad([t.branch for t in talks], batch_first=True, padding_value=-1)
        hidden = self.thinker.model.whole(embedded, positions.permute(2, 0, 1), branch_mask(branch))
        loss = self.source.said_loss(hidden, [t.said for t in talks])
        with torch.no_grad():
            right = [x for h, t in zip(hidden, talks, strict=True) for x in self._right(h, t)]
        return loss, sum(right) / len(right)

    def _right(self, hidden: Tensor, talk: Talk) -> list[bool]:
        """Whether each reply of a talk has no wrong token."""
        wanted = talk.said[1:]
        asked = wanted >= 0
        hit = self.thinker.logits(hidden[: len(wanted)][asked]).argmax(1) == wanted[asked]
        branch = talk.branch[1:][asked]
        return [bool(hit[branch == b].all()) for b in branch.unique()]


def system_prompt(rng: np.random.Generator) -> str:
    """Now and then the one that conversations begin with; it costs a fifth."""
    return tree.SYSTEM_PROMPT if rng.random() < 0.3 else ""


def by_question(samples: list[Sample]) -> dict[str, list[NDArray[np.int16]]]:
    found: dict[str, list[NDArray[np.int16]]] = {}
    for call, pcm in samples:
        found.setdefault(call.question, []).append(pcm)
    return found


def called_at(seen: Scene, call: Tensor) -> Tensor:
    """The sound of a changing scene [n] at 16 kHz: as long as it is, with the call [m] at its moment."""
    assert seen.moment is not None
    wave = torch.zeros(len(seen.frames) * INPUT_RATE // 2)
    at = int(seen.moment * INPUT_RATE)
    wave[at : at + len(call)] = call[: len(wave) - at]
    return wave


def noisy(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """The same [n] in a room that is never quite silent."""
    hiss = torch.from_numpy(rng.standard_normal(len(wave)).astype(np.float32))
    return wave + float(10 ** rng.uniform(-4, -2.3)) * hiss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=60_000, batch=4)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the assembled checkpoint")
    parser.set_defaults(data=Path("~/.cache/parley/tiny/callers").expanduser())
    parser.add_argument("--ask-after", type=int, default=3_000, help="steps of pointing alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = FrozenThinker.load(args.checkpoint, args.device)
    stage = SeeingStage(
        source,
        read_calls(args.data, "scenes"),
        read_calls(args.data, "now"),
        read_calls(args.data, "callers"),
        batch=args.batch,
        lr=args.lr or 1e-3,
        ask_after=args.ask_after,
        seed=args.seed,
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
