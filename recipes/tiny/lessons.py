"""What the Talker is taught from: recorded replies with codes, rows and alignment; and the rows around a reply."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.rope import Timeline
from recipes.tiny import align, codec, tree, vocabulary
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.rows import read_rows

if TYPE_CHECKING:
    import argparse

SLOTS = 8  # phonemes asked of one token
NUM_WORDS = 4_000  # asked without sound; with 14 000 the loss stayed at that of a guess

log = logging.getLogger("lessons")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One reply to be spoken: Thinker rows [P, H] and [n, H] (float16), codes [N], voice.

    Per code the token being spoken (-1: none) and its phoneme (0: none) [N]; per token its phonemes [n, SLOTS].
    """

    prompt_rows: Tensor
    reply_rows: Tensor
    codes: Tensor
    voice: int
    token_spoken: Tensor
    phoneme_spoken: Tensor
    pronunciation: Tensor


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
        phonemes = [list(align.word_phonemes(word)) for _, word in ranked]
        hidden = [
            rows.float() - source.embed(source.tokenizer.encode(text)).float()
            for text, (_, rows) in list(lessons.items())[:800]
        ]
        return cls(
            source.embed([token for token, _ in ranked]).float(),
            torch.tensor([(own + [0] * SLOTS)[:SLOTS] for own in phonemes]),
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
        mel, _ = codec.padded_mel([clip])
        values, codes = tokenizer.encode(mel)
        heard = tokenizer.read(values)[0].numpy()
        pieces = [text_tokens.decode([i]) for i in text_tokens.encode(clip.text)]
        phonemes = align.token_phonemes(pieces)
        try:
            tokens_at, phonemes_at = align.spoken_at(heard, phonemes)
        except ValueError:
            continue
        said = [(own + [0] * SLOTS)[:SLOTS] for own in phonemes]
        prompt_rows, reply_rows = rows[clip.text]
        lesson = Lesson(
            prompt_rows,
            reply_rows,
            codes[0].clone(),
            clip.voice,
            torch.from_numpy(tokens_at),
            torch.from_numpy(phonemes_at),
            torch.tensor(said),
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
