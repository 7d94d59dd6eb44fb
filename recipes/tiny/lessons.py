"""What the Talker is taught from: recorded replies with codes, rows and alignment; and the rows around a reply."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.rope import Timeline
from recipes.tiny import tree, vocabulary
from recipes.tiny.assemble import spelled
from recipes.tiny.dataset import VOICE_NAMES
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.phonemes import padded, spelling, text_phonemes
from recipes.tiny.recorded import all_recordings
from recipes.tiny.rows import read_rows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from model.tokenizer import TextTokenizer
    from recipes.tiny.phonemes import Phonemes
    from recipes.tiny.recorded import Recording

SLOTS = 8  # phonemes asked of one token
MOST_RETOLD = 7  # phonemes in a token of a lesson told anew
NUM_WORDS = 4_000  # asked without sound; with 14 000 the loss stayed at that of a guess
MOST_WORDS = 12_000  # to invent lessons from

log = logging.getLogger("lessons")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One reply to be spoken: Thinker rows [P, H] and [n, H] (float16), codes [N], voice.

    `spelling` has the phonemes (1-based) of each token [n]; counted through all tokens, `sounding` is the place of the
    one that each code sounds [N] (-1: none). Of an invented lesson (`inventing.py`) only phonemes are asked.
    """

    prompt_rows: Tensor
    reply_rows: Tensor
    codes: Tensor
    voice: int
    spelling: tuple[Phonemes, ...]
    sounding: Tensor
    is_invented: bool = False

    @property
    def token_spoken(self) -> Tensor:
        """The token that each code speaks [N] (-1: none)."""
        return self._of_sounding([i for i, own in enumerate(self.spelling) for _ in own], -1)

    @property
    def phoneme_spoken(self) -> Tensor:
        """The phoneme that each code sounds [N] (0: none)."""
        return self._of_sounding([p for own in self.spelling for p in own], 0)

    @property
    def slot_spoken(self) -> Tensor:
        """Which phoneme of its token each code sounds [N], the last slot for those behind it too (-1: none)."""
        return self._of_sounding(
            [min(k, SLOTS - 1) for own in self.spelling for k in range(len(own))], -1
        )

    @property
    def pronunciation(self) -> Tensor:
        """The first phonemes of each token [n, SLOTS], zeros behind them."""
        return padded(self.spelling, SLOTS)

    def _of_sounding(self, values: list[int], none: int) -> Tensor:
        return torch.tensor([*values, none])[self.sounding]


def retold(lesson: Lesson, rng: np.random.Generator) -> Lesson:
    """Return the same sound under other tokens: phonemes are shared out anew, in rows that only spell.

    A small Talker prefers to know tokens by heart; these it has never met, so it has to read. Silent tokens
    (punctuation) stay where they were.
    """
    anew: list[Phonemes] = []
    for is_spoken, tokens in itertools.groupby(lesson.spelling, key=bool):
        if not is_spoken:
            anew.extend(tokens)
            continue
        sounds = tuple(itertools.chain.from_iterable(tokens))
        while sounds:
            size = int(rng.integers(1, MOST_RETOLD + 1))
            anew.append(sounds[:size])
            sounds = sounds[size:]
    rows = F.pad(spelled(padded(anew, tree.SLOTS)), (tree.SOURCE_HIDDEN, 0))
    return dataclasses.replace(lesson, reply_rows=rows, spelling=tuple(anew))


@dataclass(frozen=True, slots=True)
class Markers:
    """The Thinker's embeddings that frame a reply, [H] each; `voices` [V, H]."""

    end: Tensor
    pad: Tensor
    voices: Tensor

    @classmethod
    def of(cls, source: FrozenThinker) -> Markers:
        table = source.thinker.model.embed_tokens.weight.float()
        config = source.config.talker
        assert config is not None
        tokens = dict(tree.VOICES.values())
        voices = table[[tokens[source] for source in VOICE_NAMES]]
        return cls(table[config.tts_text_end_token_id], table[config.tts_text_pad_token_id], voices)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words, commonest first: embeddings [V, H] and phonemes [V, SLOTS]; hidden states [K, H] to mix in."""

    embeddings: Tensor
    phonemes: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, source: FrozenThinker, lessons: dict[str, tuple[Tensor, Tensor]]) -> Vocabulary:
        ranked = vocabulary.words(source.tokenizer)[:MOST_WORDS]
        hidden = [
            rows.float() - source.embed(source.tokenizer.encode(text)).float()
            for text, (_, rows) in list(lessons.items())[:800]
        ]
        return cls(
            source.embed([token for token, _ in ranked]).float(),
            padded([text_phonemes(word) for _, word in ranked], SLOTS),
            torch.cat(hidden),
        )

    def draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rows h + e [*shape, H] of random words, and their phonemes [*shape, SLOTS]."""
        power = rng.choice((1, 3), shape)
        known = min(NUM_WORDS, len(self.phonemes))
        words = torch.from_numpy((known * rng.random(shape) ** power).astype(np.int64))
        moods = torch.from_numpy(rng.integers(0, len(self.hidden), shape))
        return self.embeddings[words] + self.hidden[moods], self.phonemes[words]

    def word(self, rng: np.random.Generator) -> tuple[Tensor, Phonemes]:
        """Row [H] and phonemes of a random word, all of them but the long ones."""
        while True:
            at = int(len(self.phonemes) * rng.random() ** rng.choice((1, 2)))
            phonemes = tuple(p for p in self.phonemes[at].tolist() if p)
            if 0 < len(phonemes) < SLOTS:
                mood = int(rng.integers(len(self.hidden)))
                return self.embeddings[at] + self.hidden[mood], phonemes


def reply_stream(reply_rows: Tensor, markers: Markers, length: int) -> Tensor:
    """The rows r_0 … of a reply: its text, the end marker once, the pad marker for ever; cut to `length`."""
    pads = markers.pad.expand(max(0, length - len(reply_rows) - 1), -1)
    return torch.cat([reply_rows, markers.end[None], pads])[:length]


def spelled_only(rows: Tensor) -> Tensor:
    """Rows [n, H] without all but the columns that spell."""
    return F.pad(rows[:, tree.SOURCE_HIDDEN :], (tree.SOURCE_HIDDEN, 0))


def speech_positions(prompt_len: int, num_steps: int) -> Tensor:
    """Positions [3, prompt + voice + steps] as the running model assigns them."""
    timeline = Timeline()
    prompt = timeline.text(prompt_len)
    voice, first, second = timeline.talker_start()
    steps = torch.arange(second - 1, second - 1 + num_steps)
    steps[0] = first
    return torch.cat([prompt, torch.cat([torch.tensor([voice]), steps]).expand(3, -1)], dim=1)


def make_lessons(
    text_tokens: TextTokenizer,
    recordings: Iterable[Recording],
    rows: dict[str, tuple[Tensor, Tensor]],
) -> list[Lesson]:
    """A lesson of each recording whose text has rows."""
    return [
        Lesson(
            *rows[x.text],
            x.codes,
            x.voice,
            spelling(text_tokens, text_tokens.encode(x.text)),
            x.sounding,
        )
        for x in recordings
        if x.text in rows
    ]


@dataclass(frozen=True, slots=True)
class Course:
    """All that one run is taught."""

    train: list[Lesson]
    kept_out: list[Lesson]
    markers: Markers
    words: Vocabulary


def prepared(args: argparse.Namespace) -> Course:
    """Make the lessons, or take those a run made before: delete its `course.pt` when there is more speech."""
    path = args.out / "course.pt"
    if path.exists():
        course: Course = torch.load(path, weights_only=False)  # written below, by ourselves
        return course
    source, rows = FrozenThinker.load(args.checkpoint, "cpu", torch.float32), read_rows(args.rows)
    recordings = all_recordings(args.data, args.codec, source.tokenizer)
    train, kept_out = (
        make_lessons(source.tokenizer, (x for x in recordings if x.is_kept_out is kept), rows)
        for kept in (False, True)
    )
    log.info("lessons %d and %d of %d", len(train), len(kept_out), len(recordings))
    with torch.inference_mode():
        course = Course(train, kept_out, Markers.of(source), Vocabulary.of(source, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(course, path)
    return course
