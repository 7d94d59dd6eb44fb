"""Prefill of one conversation: rows into the Thinker's cache, and right behind them into the Talker's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.attention import ForwardBatch, KVCache, SequenceSpan
from model.rope import Timeline
from model.thinker import Thinker, talker_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.omni import Omni
    from model.talker import Talker

PAGE_SIZE = 16


class PromptTooLong(ValueError):
    """The conversation does not fit the model's context; says how long it is and how long it may be."""


class CachedSequence:
    """One growing sequence of Thinker or Talker in a cache of its own."""

    def __init__(self, part: Thinker | Talker, capacity: int, device: torch.device) -> None:
        num_pages = -(-capacity // PAGE_SIZE)
        self._cache = KVCache(
            part.config.decoder,
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            dtype=part.model.norm.weight.dtype,
            device=device,
        )
        self._pages = range(num_pages)
        self._part = part
        self._device = device
        self.length = 0

    def extend(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Compute rows [n, H] at `positions` [3, n]; hidden states [n, H] out."""
        span = SequenceSpan(self._pages, self.length, len(rows), positions)
        batch = ForwardBatch.pack([span], PAGE_SIZE, self._device)
        hidden: Tensor = self._part(rows, batch, self._cache)
        self.length += len(rows)
        return hidden

    def crop(self, length: int) -> None:
        """Forget what lies beyond `length`; nothing is moved or cleared."""
        assert 0 <= length <= self.length
        self.length = length


class Prompt:
    """The growing prompt: both caches, the positions, and what a reply starts from.

    Every method that adds rows raises `PromptTooLong` before it changes anything.
    """

    def __init__(self, omni: Omni, capacity: int) -> None:
        """`capacity` in rows; at most the checkpoint's `max_position_embeddings`."""
        talker = omni.model.talker
        self.omni = omni
        self.capacity = capacity
        self.timeline = Timeline.for_config(omni.config.thinker)
        self.thinker = CachedSequence(omni.model.thinker, capacity, omni.device)
        self.talker = CachedSequence(talker, capacity, omni.device) if talker else None
        self.last_hidden = torch.empty(0)
        """[1, H] of the newest row: the first reply token is sampled from it."""
        vocab_size = omni.config.thinker.decoder.vocab_size
        self.seen = torch.zeros(1, vocab_size, dtype=torch.bool, device=omni.device)
        """Ids in the prompt so far, placeholders included: what a repetition penalty looks at."""

    def add_tokens(self, token_ids: Sequence[int], positions: Tensor | None = None) -> None:
        """Add text or control tokens; `positions` [3, n] where they are not simply the next ones."""
        if not token_ids:
            return
        self.require_room(len(token_ids))
        ids = torch.tensor(token_ids, device=self.omni.device)
        embedded = self.omni.model.thinker.embed(ids)
        at = self.timeline.text(len(token_ids)) if positions is None else positions
        hidden = self._extend(embedded, at)
        self.seen[0, ids] = True
        if self.talker is not None:
            self.talker.extend(talker_rows(hidden, embedded), at)

    def add_rows(self, rows: Tensor, positions: Tensor, placeholder_id: int) -> None:
        """Add an encoder's rows [n, H] in the place of `placeholder_id` tokens."""
        if not len(rows):
            return
        self.require_room(len(rows))
        hidden = self._extend(rows.to(self.omni.dtype), positions)
        self.seen[0, placeholder_id] = True
        if self.talker is not None:
            # Reference quirk: where an encoder's row stood the Talker gets h + 0, not h + e.
            self.talker.extend(hidden, positions)

    def require_room(self, num_rows: int) -> None:
        wanted = self.thinker.length + num_rows
        if wanted > self.capacity:
            raise PromptTooLong(
                f"the conversation would be {wanted} tokens long; the limit is {self.capacity}. "
                "Start a new conversation or send less media"
            )

    def _extend(self, rows: Tensor, positions: Tensor) -> Tensor:
        hidden = self.thinker.extend(rows, positions)
        self.last_hidden = hidden[-1:]
        return hidden
