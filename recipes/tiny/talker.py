"""Train the Talker (Thinker rows to codes) on exactly the sequence it sees at run time.

    prompt rows        h + e of a short chat                     (no loss)
    voice row          e(voice) + c(pad)                         (no loss)
    reply rows         r_t + c(code before)  ->  code t, then the stop id

r_t is h + e of the reply's tokens, one per code; then the end marker's embedding; then the pad marker's.

Next-code prediction alone takes very long to discover that text and sound run in parallel. Further losses say so, and
more; they need only the forced alignment (`align.py`) and the codec, and leave no trace in the shipped weights' layout:

* **guide**: in a few heads, attention goes to the row of the token that is being spoken;
* **spelling** and **slot**: a layer on, a row can tell all phonemes of that token, and which of them it is at: what a
  reader needs who has never met the word;
* **phoneme**: after one more layer, it can tell which one it is about to sound;
* **named**: which phoneme a code names counts more than the way it sounds: to next-code prediction all wrong codes are
  alike, to a listener they are not;
* **pronunciation**: low down, a token's row can tell all of its phonemes. This needs no sound, so it is also asked of
  rows of words that nobody has read aloud: thousands, commonest most often.
* Some lessons are **invented** (`inventing.py`): words in any order, of which only the phonemes are asked.

A clip is read by its own voice only. The codes carry little of it, and yet the flow makes of one voice's codes, in the
other voice, words that are understood half as well.

    python -m recipes.tiny.rows --checkpoint ~/.cache/parley/omni-tiny
    python -m recipes.tiny.talker --out ~/.cache/parley/tiny/talker --codec ~/.cache/parley/tiny/codec \\
        --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.talker import Talker
from recipes.tiny import codec, dit, loop, tree
from recipes.tiny.dataset import ALIKE, VOICE_NAMES
from recipes.tiny.histories import read_histories
from recipes.tiny.inventing import Inventor
from recipes.tiny.lessons import (
    SLOTS,
    Lesson,
    Markers,
    Vocabulary,
    prepared,
    reply_stream,
    retold,
    speech_positions,
    spelled_only,
)
from recipes.tiny.rows import MAX_PROMPT_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.config import TalkerConfig
    from model.decoder import DecoderLayer

MAX_CODES = 250
# Layers, and (layer, head).
PRONOUNCED_AFTER, GUIDED, SPELLED_AFTER, SOUNDED_AFTER = 2, ((2, 0), (3, 0), (3, 3)), 4, 5
GUIDE, SPELLING, SLOT, PHONEME, PRONUNCIATION, NAMED = 0.3, 0.2, 0.2, 0.3, 0.2, 0.5
DROPOUT = 0.1  # of what a layer adds
# So many of the codes fed back are drawn at random, or sound in another way, as its own slips will.
WRONG_CODES, WRONG_WAYS = 0.06, 0.2
# So many replies are told anew in tokens nobody has met, and so many more lose all of their rows but the spelling, or
# words and sentences are learned by heart.
RETOLD, SPELLED_ONLY = 0.4, 0.2
INVENTED = 0.4  # and before that, so many are replaced by others of the same length
# So many batches come late in a conversation: this many rows of other turns, at most, stand before each prompt.
LATER, MOST_HISTORY = 0.75, 900
SPELLING_GAIN = 2 / tree.SPELLING_SCALE  # of its columns at the start
SHARE_OF_FEMALE = 0.4
UNREAD = (16, 20)  # rows of words without sound beside each batch

log = logging.getLogger("talker")


@dataclass(frozen=True, slots=True)
class Stack:
    """A batch of lessons padded at the end: rows [B, T, H], positions [3, B, T], and what is asked per row."""

    rows: Tensor
    positions: Tensor
    codes: Tensor  # [B, T], -1 where nothing is asked, as in the next ones
    asks_ways: Tensor  # [B, T] whether the very code is asked, or its phoneme only
    phonemes: Tensor  # [B, T]
    looked_at: Tensor  # [B, T] the row to attend to
    slots: Tensor  # [B, T] which of the phonemes of the token spoken there
    spellings: Tensor  # [B, T, SLOTS] all of them
    pronunciations: Tensor  # [B, T, SLOTS] of the row's own token


class Guides(nn.Module):
    """What training adds: readers of phonemes. Not shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def reader(size: int) -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

        self.pronounced = reader(SLOTS * codec.NUM_READ)
        self.spelled = reader(SLOTS * codec.NUM_READ)
        self.slot, self.sounding = reader(SLOTS), reader(codec.NUM_READ)


class TalkerStage:
    shipped: tuple[str, ...] = ("talker",)

    def __init__(
        self,
        train: list[Lesson],
        kept_out: list[Lesson],
        markers: Markers,
        words: Vocabulary | None,
        config: TalkerConfig,
        *,
        batch: int,
        lr: float,
        device: str,
        seed: int,
        histories: Sequence[Tensor] = (),
    ) -> None:
        torch.manual_seed(seed)
        self.histories = histories
        self.train, self.kept_out, self.markers, self.words = train, kept_out, markers, words
        self.batch, self.lr, self.device, self.config = batch, lr, device, config
        self.odds = lesson_odds(train)
        self.inventor = Inventor.of(words, train) if words is not None else None
        self.talker = Talker(config)
        initialise(self.talker)
        self.talker.to(device).prepare()
        self.guides = Guides(config.decoder.hidden_size).to(device)
        self.parts: dict[str, nn.Module] = {"talker": self.talker, "guides": self.guides}
        parameters = [*self.talker.parameters(), *self.guides.parameters()]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "talker": torch.optim.AdamW(
                parameters, lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True
            )
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        drawn = rng.choice(len(self.train), ALIKE * self.batch, p=self.odds)
        alike = sorted((self.train[i] for i in drawn), key=lambda lesson: len(lesson.codes))
        first = int(rng.integers(ALIKE)) * self.batch
        lessons = alike[first : first + self.batch]
        if self.histories and rng.random() < LATER:
            length = int(rng.integers(MOST_HISTORY))
            lessons = [later(lesson, self.histories, length, rng) for lesson in lessons]
        with loop.half_precision(self.device):
            loss, figures = self._loss(self._stack(lessons, rng))
            if self.words is not None:
                unread = self._unread_loss(self.words, rng)
                loss, figures["unread"] = loss + PRONUNCIATION * unread, unread.item()
        optimizer = self.optimizers["talker"]
        loop.warm_up(optimizer, step, self.lr, 100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.talker.parameters(), 1.0)
        optimizer.step()
        return figures

    def validate(self) -> dict[str, float]:
        lessons = sorted(self.kept_out, key=lambda x: len(x.codes))
        parts = [
            self._loss(self._stack(lessons[i : i + 10], None))[1]
            for i in range(0, len(lessons), 10)
        ]
        figures = {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}
        # Codes have more than one right answer: what is learned by heart raises their loss while reading gets better.
        return {"score": figures["named"], **figures}

    def _loss(self, stack: Stack) -> tuple[Tensor, dict[str, float]]:
        model = self.talker.model
        assert model.rotary is not None
        rotary = model.rotary.cos_sin(stack.positions.flatten(1), torch.float32)
        # The stream through the layers stays exact; only products are rounded.
        x = self.talker.thinker_to_talker_proj(stack.rows).float()
        guide, found = [], []
        sound = said = spelt = slot = x.new_zeros(())
        for i, layer in enumerate(cast("list[DecoderLayer]", list(model.layers))):
            for at, head in GUIDED:
                if at == i:
                    share, is_found = looked(layer, head, x, rotary, stack.looked_at)
                    guide.append(share)
                    found.append(is_found)
            x = x + F.dropout(layer.whole(x, rotary) - x, DROPOUT, self.talker.training)
            if i + 1 == PRONOUNCED_AFTER:
                said = asked_loss(
                    self.guides.pronounced(x).unflatten(2, (SLOTS, -1)), stack.pronunciations
                )
            if i + 1 == SPELLED_AFTER:
                spelt = asked_loss(
                    self.guides.spelled(x).unflatten(2, (SLOTS, -1)), stack.spellings
                )
                slot = asked_loss(self.guides.slot(x), stack.slots)
            if i + 1 == SOUNDED_AFTER:
                sound = asked_loss(self.guides.sounding(x), stack.phonemes)
        inside = stack.codes >= 0
        logits = self.talker.codec_head(model.norm(x)[inside]).float()
        surprise = F.cross_entropy(logits, stack.codes[inside], reduction="none")
        real = stack.asks_ways[inside].float()
        loss = (surprise * real).sum() / real.sum().clamp(min=1)
        named, is_named = naming(logits, stack.codes[inside])
        guided = torch.stack(guide).mean()
        figures = {
            "loss": loss.item(),
            "named": named.item(),
            "right": is_named,
            "guide": guided.item(),
            "found": float(np.mean([f.item() for f in found[1:]])),
            "spelt": spelt.item(),
            "slot": slot.item(),
            "sound": sound.item(),
            "said": said.item(),
        }
        reading = SPELLING * spelt + SLOT * slot + PHONEME * sound + PRONUNCIATION * said
        return loss + NAMED * named + GUIDE * guided + reading, figures

    def _unread_loss(self, words: Vocabulary, rng: np.random.Generator) -> Tensor:
        """Pronunciation of words without sound, under random codes."""
        rows, wanted = (x.to(self.device) for x in words.draw(rng, UNREAD))
        codes = torch.from_numpy(rng.integers(0, tree.NUM_CODES, UNREAD)).to(self.device)
        assert self.talker.model.rotary is not None
        positions = torch.arange(UNREAD[1], device=self.device) + int(rng.integers(60))
        rotary = self.talker.model.rotary.cos_sin(
            positions.repeat(UNREAD[0]).expand(3, -1), torch.float32
        )
        x = self.talker.thinker_to_talker_proj(rows + self.talker.embed_codes(codes)).float()
        for layer in cast("list[DecoderLayer]", list(self.talker.model.layers))[:PRONOUNCED_AFTER]:
            x = layer.whole(x, rotary)
        return asked_loss(self.guides.pronounced(x).unflatten(2, (SLOTS, -1)), wanted)

    def _stack(self, lessons: list[Lesson], rng: np.random.Generator | None) -> Stack:
        """Lay out lessons; with `rng` as in training: cut prompts, wrong codes."""
        made = [self._sequence(lesson, rng) for lesson in lessons]
        # Few distinct lengths: kernels are cached by shape, and thousands of shapes filled 5 GB.
        longest = -(-max(len(m.rows) for m in made) // 16) * 16

        def padded(x: Tensor, value: float) -> Tensor:
            return F.pad(x, (*(0,) * (2 * x.dim() - 1), longest - len(x)), value=value)

        return Stack(
            torch.stack([padded(m.rows, 0) for m in made]),
            torch.stack([F.pad(m.positions, (0, longest - len(m.rows))) for m in made], dim=1),
            torch.stack([padded(m.codes, -1) for m in made]),
            torch.stack([padded(m.asks_ways, False) for m in made]),
            torch.stack([padded(m.phonemes, -1) for m in made]),
            torch.stack([padded(m.looked_at, -1) for m in made]),
            torch.stack([padded(m.slots, -1) for m in made]),
            torch.stack([padded(m.spellings, -1) for m in made]),
            torch.stack([padded(m.pronunciations, -1) for m in made]),
        )

    def _sequence(self, lesson: Lesson, rng: np.random.Generator | None) -> Stack:
        config, device, fed = self.config, self.device, lesson.codes
        if rng is not None:
            if self.inventor is not None and rng.random() < INVENTED:
                lesson = self.inventor(lesson, rng)
            lesson, fed = varied(lesson, rng)
        prompt = lesson.prompt_rows.to(device).float()
        codes, fed = lesson.codes[:MAX_CODES].to(device), fed[:MAX_CODES].to(device)
        before = F.pad(fed, (1, 0), value=config.tts_codec_start_token_id)  # what each step is fed
        is_whole = len(codes) == len(lesson.codes)
        after = F.pad(codes, (0, 1), value=config.tts_codec_end_token_id if is_whole else -1)
        reply = reply_stream(lesson.reply_rows.to(device).float(), self.markers, len(before))
        voice_row = self.markers.voices[lesson.voice] + self.talker.embed_codes(
            torch.tensor(config.tts_codec_pad_token_id, device=device)
        )
        rows = torch.cat([prompt, voice_row[None], reply + self.talker.embed_codes(before)])
        start, steps = len(prompt) + 1, torch.arange(len(before))
        token = F.pad(lesson.token_spoken[: len(codes)], (0, 1), value=-1)
        has_come = (token >= 0) & (token <= steps)
        phoneme = F.pad(lesson.phoneme_spoken[: len(codes)], (0, 1))
        slot = F.pad(lesson.slot_spoken[: len(codes)], (0, 1), value=-1)
        pronunciation = lesson.pronunciation
        spelling = torch.where(has_come[:, None], pronunciation[token.clamp(min=0)], -1)
        said = pronunciation[: len(before)]
        return Stack(
            rows,
            speech_positions(len(prompt), len(before)).to(device),
            F.pad(after, (start, 0), value=-1),
            torch.full((len(rows),), not lesson.is_invented, device=device),
            F.pad(phoneme, (start, 0), value=-1).to(device),
            F.pad(torch.where(has_come, token + start, -1), (start, 0), value=-1).to(device),
            F.pad(torch.where(has_come, slot, -1), (start, 0), value=-1).to(device),
            F.pad(spelling, (0, 0, start, 0), value=-1).to(device),
            F.pad(said, (0, 0, start, len(before) - len(said)), value=-1).to(device),
        )


def varied(lesson: Lesson, rng: np.random.Generator) -> tuple[Lesson, Tensor]:
    """Return a lesson as training tells it, under a shorter prompt, and codes [N] to feed back."""
    fate = rng.random()
    if fate < RETOLD:
        lesson = retold(lesson, rng)
    elif fate < RETOLD + SPELLED_ONLY:
        lesson = dataclasses.replace(lesson, reply_rows=spelled_only(lesson.reply_rows))
    prompt = lesson.prompt_rows
    if len(prompt) <= MAX_PROMPT_ROWS:  # else it is as long as it was asked to be
        prompt = prompt[-int(rng.integers(4, len(prompt)) ** rng.choice((0.7, 1.0))) :]
    return dataclasses.replace(lesson, prompt_rows=prompt), slipped(lesson.codes, rng)


def later(
    lesson: Lesson, histories: Sequence[Tensor], length: int, rng: np.random.Generator
) -> Lesson:
    """Return a lesson after other turns, `length` rows of them."""
    turns, missing = [lesson.prompt_rows], length
    while missing > 0:
        turn = histories[int(rng.integers(len(histories)))][-missing:]
        turns.append(turn.to(lesson.prompt_rows.dtype))
        missing -= len(turn)
    return dataclasses.replace(lesson, prompt_rows=torch.cat(turns[::-1]))


def slipped(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """Codes [N] as a reader who errs now and then might have said them."""
    slips = torch.from_numpy(rng.random(len(codes)))
    drawn = torch.from_numpy(rng.integers(0, tree.NUM_CODES, len(codes)))
    otherwise = codes - codes % tree.NUM_WAYS + drawn % tree.NUM_WAYS
    said = torch.where(slips < WRONG_CODES + WRONG_WAYS, otherwise, codes)
    return torch.where(slips < WRONG_CODES, drawn, said)


def looked(
    layer: DecoderLayer, head: int, x: Tensor, rotary: tuple[Tensor, Tensor], wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """How surprising the `wanted` rows [B, T] (-1: none) are to one head's attention, and how often they win."""
    attention = layer.self_attn
    num_seqs, length, _ = x.shape
    qk, _ = attention._project(layer.input_layernorm(x).flatten(0, 1), rotary)
    qk = qk.view(num_seqs, length, -1, attention.head_dim)
    group = attention.num_heads // attention.num_kv_heads
    q, k = qk[:, :, head], qk[:, :, attention.num_heads + head // group]
    scores = (q @ k.transpose(1, 2)).float() * attention.head_dim**-0.5
    ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    odds = scores.masked_fill(ahead, -torch.inf).log_softmax(-1)
    asked = wanted >= 0
    return (
        F.nll_loss(odds[asked], wanted[asked]),
        (odds[asked].argmax(-1) == wanted[asked]).float().mean(),
    )


def asked_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy where `wanted` is not -1."""
    asked = wanted >= 0
    return F.cross_entropy(logits[asked].float(), wanted[asked])


def naming(logits: Tensor, codes: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of the phonemes that `codes` [n] name, in whatever way they sound, given `logits` [n, V].

    And how often the likeliest one is right. A stop counts as one more phoneme.
    """
    stop = logits[:, tree.CODEC_EOS : tree.CODEC_EOS + 1]
    ways = logits[:, : tree.NUM_CODES].unflatten(1, (tree.NUM_SOUNDS, -1))
    sounds = torch.cat([ways.logsumexp(2), stop], 1)
    named = torch.where(codes < tree.NUM_CODES, codes // tree.NUM_WAYS, tree.NUM_SOUNDS)
    return F.cross_entropy(sounds, named), (sounds.argmax(1) == named).float().mean().item()


def lesson_odds(lessons: list[Lesson]) -> NDArray[np.float64]:
    """Chance of each lesson: by length within a voice, the scarce female voice more often than its share."""
    lengths = np.array([len(x.codes) for x in lessons], np.float64)
    is_female = np.array([VOICE_NAMES[x.voice] == "gongitsune" for x in lessons], bool)
    odds = np.where(
        is_female,
        SHARE_OF_FEMALE * lengths / max(1.0, lengths[is_female].sum()),
        (1 - SHARE_OF_FEMALE) * lengths / max(1.0, lengths[~is_female].sum()),
    )
    return odds / odds.sum()


def initialise(talker: Talker) -> None:
    """Start from scratch: matrices by fan-in, residual outputs smaller, norms at one, like codes alike."""
    depth = len(talker.model.layers)
    for name, weight in talker.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() == 1:
            nn.init.ones_(weight)
        elif "embed_tokens" in name:
            nn.init.normal_(weight, std=0.5)  # about the size of the Thinker's rows
        else:
            scale = (
                (2 * depth) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            )
            nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)
    # What spells a token is small beside the rest of its embedding, and matters most.
    with torch.no_grad():
        talker.thinker_to_talker_proj.weight[:, tree.SOURCE_HIDDEN :] *= SPELLING_GAIN
    meanings = codec.meaning(torch.arange(tree.NUM_CODES))
    for seed, table in enumerate((talker.model.embed_tokens.weight, talker.codec_head.weight)):
        dit.embed_by_value(table, meanings, seed)


def load(out: Path, config: TalkerConfig, *, best: bool = True) -> Talker:
    talker = Talker(config)
    talker.load_state_dict(loop.load_average(out, "talker", best=best))
    talker.prepare()
    return talker.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=100_000, batch=16)
    parser.add_argument("--codec", type=Path, required=True, help="the codec's run")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the assembled checkpoint")
    parser.add_argument("--rows", type=Path, default=Path("~/.cache/parley/tiny/rows").expanduser())
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = tree.config().talker
    assert config is not None
    course = prepared(args)
    stage = TalkerStage(
        course.train,
        course.kept_out,
        course.markers,
        course.words,
        config,
        batch=args.batch,
        lr=args.lr or 5e-4,
        device=args.device,
        seed=args.seed,
        histories=read_histories(args.rows),
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
