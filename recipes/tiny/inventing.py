"""Lessons that nobody recorded: words in any order, each phoneme as it sounded somewhere else.

A small Talker that was taught some thousand sentences says their words where it should read others: "the fastest
animal" became "the left". Here no word tells what comes next, so that reading is all that helps. Nobody would
speak like that: only which phoneme sounds is asked of such a lesson, not the way.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recipes.tiny.tree import NUM_WAYS

if TYPE_CHECKING:
    import numpy as np

    from recipes.tiny.lessons import Lesson, Vocabulary
    from recipes.tiny.phonemes import Phonemes


@dataclass(frozen=True, slots=True)
class Inventor:
    """`runs` has how each phoneme of each voice was sounded: the codes [k] of every time that they name it."""

    words: Vocabulary
    runs: dict[tuple[int, int], list[Tensor]]

    @classmethod
    def of(cls, words: Vocabulary, lessons: list[Lesson]) -> Inventor:
        runs: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for lesson in lessons:
            at, phonemes = 0, lesson.phoneme_spoken.tolist()
            for _, places in itertools.groupby(lesson.sounding.tolist()):
                end = at + sum(1 for _ in places)
                codes = lesson.codes[at:end]
                # "a" is spelled as it sounds alone, and sounds otherwise in a sentence.
                if bool((codes // NUM_WAYS == phonemes[at]).all()):
                    runs[lesson.voice, phonemes[at]].append(codes)
                at = end
        return cls(words, dict(runs))

    def __call__(self, like: Lesson, rng: np.random.Generator) -> Lesson:
        """Return a lesson about as long as another, in its voice, with its silences, its prompt and its full stop."""
        spoken = (like.sounding >= 0).nonzero().flatten().tolist()
        before, after = like.codes[: spoken[0]], like.codes[spoken[-1] + 1 :]
        rows, spelling, pieces = self._words(like.voice, spoken[-1] + 1 - spoken[0], rng)
        if not like.spelling[-1]:
            rows, spelling = [*rows, like.reply_rows[-1]], [*spelling, ()]
        places = [
            torch.full((len(before),), -1),
            *(torch.full((len(piece),), i) for i, piece in enumerate(pieces)),
            torch.full((len(after),), -1),
        ]
        return dataclasses.replace(
            like,
            reply_rows=torch.stack([row.float() for row in rows]),
            codes=torch.cat([before, *pieces, after]),
            spelling=tuple(spelling),
            sounding=torch.cat(places),
            is_invented=True,
        )

    def _words(
        self, voice: int, num_codes: int, rng: np.random.Generator
    ) -> tuple[list[Tensor], list[Phonemes], list[Tensor]]:
        """Rows and phonemes of words, and codes for each phoneme, until there are as many codes as asked."""
        rows, spelling, pieces = [], [], list[Tensor]()
        while sum(map(len, pieces)) < num_codes or not rows:
            row, phonemes = self.words.word(rng)
            runs = [self.runs.get((voice, phoneme)) for phoneme in phonemes]
            if all(runs):
                rows.append(row)
                spelling.append(phonemes)
                pieces += [own[int(rng.integers(len(own)))] for own in runs if own]
        return rows, spelling, pieces
