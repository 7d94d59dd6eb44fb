"""Hold a language model that is being added to where it was: what it answers to words alone, typed and spoken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from recipes.tiny.dataset import to_wave
from recipes.tiny.exchanges import exchange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from recipes.tiny.adapters import Adapters
    from recipes.tiny.callers import Call
    from recipes.tiny.frozen import FrozenThinker
    from recipes.tiny.showing import Showing

EXCHANGES_SEED = 41
SPOKEN = 2  # turns beside a typed one; words that are spread over rows are the first to be lost


class Holder:
    """Draws turns in which nothing is shown, and says how far the replies to them have moved."""

    def __init__(
        self,
        source: FrozenThinker,
        adapters: Adapters,
        showing: Showing,
        calls: list[tuple[Call, NDArray[np.int16]]],
    ) -> None:
        self.source, self.adapters = source, adapters
        self.showing, self.calls = showing, calls

    def loss(self, rng: np.random.Generator) -> Tensor:
        """KL from the replies' distributions without the adapters to those with them."""
        encode = self.source.tokenizer.encode
        typed = exchange(EXCHANGES_SEED, int(rng.integers(10**9)), polite=True)
        turns = [(self.source.embed(encode(typed.question)), encode(typed.reply))]
        for i in rng.choice(len(self.calls), min(SPOKEN, len(self.calls))):
            call, pcm = self.calls[i]
            clip = torch.cat(self.showing.hear(to_wave(pcm)))
            turns.append((self.source.sound(clip), encode(call.reply)))
        rows = [self.source.turn(said, reply) for said, reply in turns]
        counts = [len(reply) + 1 for _, reply in turns]  # the last one predicts the end
        with torch.no_grad(), self.adapters.off():
            wanted = self.source.reply_logits(rows, counts).float().log_softmax(-1)
        given = self.source.reply_logits(rows, counts).float().log_softmax(-1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
