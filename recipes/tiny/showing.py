"""Conversations about what is shown, laid out as the running model has them: rows, positions, and what is to be said.

* **typed**: a picture or a video, then every question about it. Each question sees the picture and itself, none the
  others, so that one picture serves them all.
* **watched**: a camera that goes on while somebody speaks, pairs and sound of two seconds after one another. The
  question is in the sound, or comes in writing afterwards: what was shown when somebody said "now"?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.mel import LogMel
from model.rope import Timeline
from recipes.tiny.callers import INPUT_RATE
from recipes.tiny.turns import closing, opening

if TYPE_CHECKING:
    from model.image import Patches
    from recipes.tiny.exchanges import Exchange
    from recipes.tiny.frozen import FrozenThinker

MAX_QUESTIONS = 6
PAIRS_PER_BLOCK = 2  # two frames a second, two seconds of sound
TOGETHER = 0  # the branch that everybody sees


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation; what is in a branch of its own is seen by that branch alone."""

    rows: Tensor  # [T, H]
    positions: Tensor  # [3, T]
    said: Tensor  # [T] tokens that are to be said, -1: none
    branch: Tensor  # [T]


class Showing:
    """Lays out talks for one frozen Thinker, whose ears hear what is said."""

    def __init__(self, source: FrozenThinker) -> None:
        self.source, self.config = source, source.thinker.config
        ears = self.config.audio
        self.log_mel = LogMel(ears.num_mel_bins, ears.block_frames)

    def typed(
        self, questions: list[Exchange], pairs: list[Patches], rows: list[Tensor], system: str = ""
    ) -> Talk:
        """Pairs and their rows [n, H], then the first of the questions side by side."""
        page = _Page(self.source)
        page.add_text(opening(self.source.tokenizer, system))
        page.add([self.config.vision_start_token_id], page.timeline.open_segment(with_audio=False))
        for i, (patches, own) in enumerate(zip(pairs, rows, strict=True)):
            page.add_pair(i, patches, own)
        page.add([self.config.vision_end_token_id], page.timeline.close_segment())
        for i, question in enumerate(questions[:MAX_QUESTIONS], 1):
            page.add_exchange(question.question, question.reply, branch=i)
        return page.talk()

    def watched(
        self,
        question: str,
        reply: str,
        pairs: list[Patches],
        rows: list[Tensor],
        wave: Tensor,
        system: str = "",
    ) -> Talk:
        """Pairs and sound [n] at 16 kHz, then a typed question: "" if the sound holds it.

        The last pair stays while the sound lasts.
        """
        page, config = _Page(self.source), self.config
        page.add_text(opening(self.source.tokenizer, system))
        markers = [config.vision_start_token_id, config.audio_start_token_id]
        page.add(markers, page.timeline.open_segment(with_audio=True))
        blocks = self.hear(wave)
        num_pairs = max(len(pairs), -(-len(wave) // INPUT_RATE))
        for chunk in range(max(len(blocks), -(-num_pairs // PAIRS_PER_BLOCK))):
            first = chunk * PAIRS_PER_BLOCK
            for i in range(first, min(first + PAIRS_PER_BLOCK, num_pairs)):
                shown = min(i, len(pairs) - 1)
                page.add_pair(i, pairs[shown], rows[shown])
            if chunk < len(blocks):
                page.add_rows(blocks[chunk], page.timeline.audio(len(blocks[chunk])))
        markers = [config.audio_end_token_id, config.vision_end_token_id]
        page.add(markers, page.timeline.close_segment())
        page.add_exchange(question, reply)
        return page.talk()

    @torch.no_grad()
    def hear(self, wave: Tensor) -> list[Tensor]:
        """Rows [n, H] of every two seconds of sound [n] at 16 kHz."""
        ears = self.source.thinker.audio_tower
        mel = self.log_mel(wave[None])[0].to(self.source.device, self.source.dtype)
        return ears.encode_blocks(list(mel.split(self.log_mel.block_samples // 160)))


class _Page:
    """A talk while it is written."""

    def __init__(self, source: FrozenThinker) -> None:
        self.source = source
        self.timeline = Timeline.for_config(source.thinker.config)
        self._rows: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._said: list[int] = []
        self._branch: list[int] = []

    def add_rows(
        self, rows: Tensor, positions: Tensor, said: list[int] | None = None, branch: int = TOGETHER
    ) -> None:
        self._rows.append(rows.to(self.source.dtype))
        self._positions.append(positions)
        self._said += said or [-1] * len(rows)
        self._branch += [branch] * len(rows)

    def add(self, tokens: list[int], positions: Tensor) -> None:
        self.add_rows(self.source.embed(tokens), positions)

    def add_text(self, tokens: list[int]) -> None:
        self.add(tokens, self.timeline.text(len(tokens)))

    def add_pair(self, index: int, patches: Patches, rows: Tensor) -> None:
        self.add_rows(rows, self.timeline.pair(index, patches.grid_h // 2, patches.grid_w // 2))

    def add_exchange(self, question: str, reply: str, branch: int = TOGETHER) -> None:
        """The rest of what the user says, and the reply that is wanted; in a branch, as if it came first."""
        tokenizer = self.source.tokenizer
        told = [*tokenizer.encode(question), *closing(tokenizer)]
        wanted = [*tokenizer.encode(reply), tokenizer.im_end_id]
        timeline = self.timeline if branch == TOGETHER else self.timeline.snapshot()
        positions = timeline.text(len(told) + len(wanted))
        said = [-1] * len(told) + wanted
        self.add_rows(self.source.embed([*told, *wanted]), positions, said, branch)

    def talk(self) -> Talk:
        device = self.source.device
        return Talk(
            torch.cat(self._rows),
            torch.cat(self._positions, 1).to(device),
            torch.tensor(self._said, device=device),
            torch.tensor(self._branch, device=device),
        )


def branch_mask(branch: Tensor) -> Tensor:
    """Who may look where: branches [B, T] to [B, 1, T, T]. A row sees what all see and its own branch, backwards."""
    own = branch[:, :, None] == branch[:, None]
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    return ((own | (branch[:, None] == TOGETHER)) & causal)[:, None]
