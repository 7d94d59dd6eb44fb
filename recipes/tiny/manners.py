"""Teach the Thinker to answer as one does in talk: greet, answer in a sentence or two, say that it does not know.

A low-rank addition (LoRA, Hu et al. 2021) to every matrix of the layers; `assemble.py` adds it to the packaged weights.
It learns from exchanges (`exchanges.py`: templates and facts written here) and from the first sentences of what the
model itself says to open questions (`replies.py --pairs`), so that whatever it knew it still says, only shorter.
Loss is taken on the replies. Some conversations have several turns, some a system message, some none.

    C=~/.cache/parley/omni-tiny
    python -m recipes.tiny.replies --checkpoint $C --pairs --temperature 0.5 --count 700 > pairs.jsonl
    python -m recipes.tiny.manners --checkpoint $C --pairs pairs.jsonl --out ~/.cache/parley/tiny/manners
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recipes.tiny import loop, tree
from recipes.tiny.adapters import Adapters
from recipes.tiny.exchanges import exchange
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.rows import SYSTEM_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

OPEN_SHARE = 0.25  # of turns that come from the model's own replies
MAX_TOKENS = 320
EXCHANGES_SEED, KEPT_OUT_SEED = 31, 901

Pair = tuple[str, str]


class MannersStage:
    shipped: tuple[str, ...] = ("manners",)

    def __init__(
        self, source: FrozenThinker, pairs: list[Pair], *, batch: int, lr: float, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.source, self.batch, self.lr = source, batch, lr
        self.kept_out, self.pairs = pairs[:40], pairs[40:]
        manners = Adapters.around(source)
        self.parts: dict[str, nn.Module] = {"manners": manners}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "manners": torch.optim.AdamW(manners.parameters(), lr, betas=(0.9, 0.98), fused=True)
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        draw = random.Random(int(rng.integers(1 << 60)))
        talks = [self._talk(draw) for _ in range(4 * self.batch)]
        talks.sort(key=lambda talk: sum(len(q) + len(a) for q, a in talk[1]))
        first = draw.randrange(4) * self.batch
        loss = self._loss([self._tokens(*t) for t in talks[first : first + self.batch]])
        loop.warm_up(self.optimizers["manners"], step, self.lr, 50)
        self.optimizers["manners"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts["manners"].parameters(), 1.0)
        self.optimizers["manners"].step()
        return {"loss": loss.item()}

    def validate(self) -> dict[str, float]:
        """Losses on unseen exchanges and on unseen replies of the model's own."""
        closed = [exchange(KEPT_OUT_SEED, i, polite=True) for i in range(40)]
        parts = {
            "closed": [(x.question, x.reply) for x in closed],
            "open": self.kept_out,
        }
        losses = {
            name: self._loss([self._tokens(tree.SYSTEM_PROMPT, [pair]) for pair in pairs]).item()
            for name, pairs in parts.items()
            if pairs
        }
        return {"score": sum(losses.values()), **losses}

    def _talk(self, draw: random.Random) -> tuple[str, list[Pair]]:
        """A system message and one to three turns."""
        system = draw.choice((tree.SYSTEM_PROMPT, *SYSTEM_PROMPTS))
        return system, [self._turn(draw) for _ in range(draw.choice((1, 1, 2, 3)))]

    def _turn(self, draw: random.Random) -> Pair:
        if self.pairs and draw.random() < OPEN_SHARE:
            return draw.choice(self.pairs)
        made = exchange(EXCHANGES_SEED, draw.randrange(10**9), polite=True)
        return made.question, made.reply

    def _tokens(self, system: str, turns: Sequence[Pair]) -> tuple[list[int], list[bool]]:
        """A conversation as the running model writes it, and which tokens the model has to say."""
        source = self.source
        end, newline = source.tokenizer.im_end_id, source.tokenizer.encode("\n")
        tokens: list[int] = []
        is_said: list[bool] = []
        for i, (question, reply) in enumerate(turns):
            framed = source.chat(system if i == 0 else "", question)
            said = [*source.tokenizer.encode(reply), end]
            tokens += [*framed, *said, *newline]
            is_said += [False] * len(framed) + [True] * len(said) + [False] * len(newline)
        return tokens[:MAX_TOKENS], is_said[:MAX_TOKENS]

    def _loss(self, talks: list[tuple[list[int], list[bool]]]) -> Tensor:
        with loop.half_precision(self.source.device):
            rows = [self.source.embed(tokens) for tokens, _ in talks]
            hidden = self.source.hidden(nn.utils.rnn.pad_sequence(rows, batch_first=True))
            said = [
                torch.tensor(
                    [t if asked else -1 for t, asked in zip(*talk, strict=True)],
                    device=hidden.device,
                )
                for talk in talks
            ]
            return self.source.said_loss(hidden, said)


def read_pairs(path: Path | None) -> list[Pair]:
    if path is None:
        return []
    return [(p["question"], p["reply"]) for p in map(json.loads, path.read_text().splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=3_000, batch=8)
    parser.add_argument("--checkpoint", type=Path, required=True, help="assembled without manners")
    parser.add_argument("--pairs", type=Path, help="open questions and short replies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = FrozenThinker.load(args.checkpoint, args.device)
    stage = MannersStage(
        source, read_pairs(args.pairs), batch=args.batch, lr=args.lr or 1e-3, seed=args.seed
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
