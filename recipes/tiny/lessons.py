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
from recipes.tiny import codec, tree, vocabulary
from recipes.tiny.assemble import spelled
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.phonemes import padded, spelling, text_phonemes
from recipes.tiny.rows import read_rows

if TYPE_CHECKING:
    import argparse

    from recipes.tiny.phonemes import Phonemes

SLOTS = 8  # phonemes asked of one token
MOST_RETOLD = 7  # phonemes in a token of a lesson told anew
NUM_WORDS = 4_000  # asked without sound; with 14 000 the loss stayed at that of a guess

log = logging.getLogger("lessons")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One reply to be spoken: Thinker rows [P, H] and [n, H] (float16), codes [N], voice.

    `spelling` has the phonemes (1-based) of each token [n]; counted through all tokens, `sounding` is the place of the
    one that each code sounds [N] (-1: none).
    """

    prompt_rows: Tensor
    reply_rows: Tensor
    codes: Tensor
    voice: int
    spelling: tuple[Phonemes, ...]
    sounding: Tensor

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
        ranked = vocabulary.words(source.tokenizer)[:NUM_WORDS]
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


@torch.inference_mode()
def make_lessons(
    source: FrozenThinker,
    tokenizer: codec.Tokenizer,
    clips: list[Clip],
    rows: dict[str, tuple[Tensor, Tensor]],
) -> list[Lesson]:
    """Encode and align every clip whose text has rows; one that cannot be aligned is left out."""
    lessons, text_tokens = [], source.tokenizer
    for clip in (clip for clip in clips if clip.text in rows):
        codes, mel, heard = codec.encode_clip(tokenizer, clip)
        spelt = spelling(text_tokens, text_tokens.encode(clip.text))
        try:
            sounding = codec.sounding_places(
                heard, mel[: clip.num_frames], [p for own in spelt for p in own]
            )
        except ValueError:
            continue
        prompt_rows, reply_rows = rows[clip.text]
        lesson = Lesson(
            prompt_rows,
            reply_rows,
            codes.clone(),
            clip.voice,
            spelt,
            sounding,
        )
        lessons.append(lesson)
    log.info("lessons %d of %d clips", len(lessons), len(clips))
    return lessons


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
    speech, tokenizer = Speech(args.data), codec.load(args.codec)
    source, rows = FrozenThinker.load(args.checkpoint, "cpu"), read_rows(args.rows)
    course = Course(
        make_lessons(source, tokenizer, speech.train, rows),
        make_lessons(source, tokenizer, speech.kept_out, rows),
        Markers.of(source),
        Vocabulary.of(source, rows),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(course, path)
    return course
