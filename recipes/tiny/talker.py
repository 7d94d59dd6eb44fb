"""Train the Talker (Thinker rows to codes) on exactly the sequence it sees at run time.

    prompt rows        h + e of a short chat                     (no loss)
    voice row          e(voice) + c(pad)                         (no loss)
    reply rows         r_t + c(code before)  ->  code t, then the stop id

r_t is h + e of the reply's tokens, one per code; then the end marker's embedding; then the pad marker's. The Thinker
is frozen, so its rows are computed once per clip and kept.

    python -m recipes.tiny.talker --out ~/.cache/parley/tiny/talker --codec ~/.cache/parley/tiny/codec \\
        --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.rope import Timeline
from model.talker import Talker
from recipes.tiny import codec, dit, loop, tree
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.texts import sentence

if TYPE_CHECKING:
    from model.config import TalkerConfig

# The Talker must read aloud under any prompt, so it is trained under several, and under none.
SYSTEM_PROMPTS = (
    tree.SYSTEM_PROMPT,
    "You are a helpful assistant. Answer in one or two short sentences.",
    "Talk like a friend.",
    "",
)
MAX_CODES = 250

log = logging.getLogger("talker")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One reply to be spoken: Thinker rows [P, H] and [n, H] (float16), codes [N], voice."""

    prompt_rows: Tensor
    reply_rows: Tensor
    codes: Tensor
    voice: int


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


class TalkerStage:
    shipped: tuple[str, ...] = ("talker",)

    def __init__(
        self,
        train: list[Lesson],
        kept_out: list[Lesson],
        markers: Markers,
        config: TalkerConfig,
        *,
        batch: int,
        lr: float,
        device: str,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.train, self.kept_out, self.markers = train, kept_out, markers
        self.batch, self.lr, self.device, self.config = batch, lr, device, config
        lengths = np.array([len(x.codes) for x in train], np.float64)
        owner = np.array([x.voice for x in train])
        self.odds = lengths / np.bincount(owner, lengths, len(VOICE_NAMES))[owner] / len(set(owner))
        self.talker = Talker(config)
        initialise(self.talker)
        self.talker.to(device).prepare()
        self.parts: dict[str, nn.Module] = {"talker": self.talker}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "talker": torch.optim.AdamW(
                self.talker.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.02
            )
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        lessons = [self.train[i] for i in rng.choice(len(self.train), self.batch, p=self.odds)]
        loss, figures = self._loss(lessons)
        optimizer = self.optimizers["talker"]
        loop.warm_up(optimizer, step, self.lr, 500)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.talker.parameters(), 1.0)
        optimizer.step()
        return figures

    def validate(self) -> dict[str, float]:
        parts = [self._loss(self.kept_out[i : i + 10])[1] for i in range(0, len(self.kept_out), 10)]
        figures = {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}
        return {"score": figures["loss"], **figures}

    def _loss(self, lessons: list[Lesson]) -> tuple[Tensor, dict[str, float]]:
        rows, positions, targets = self._stack(lessons)
        x = self.talker.thinker_to_talker_proj(rows)
        logits = self.talker.codec_head(self.talker.model.whole(x, positions))
        inside = targets >= 0
        loss = F.cross_entropy(logits[inside].float(), targets[inside])
        right = (logits[inside].argmax(-1) == targets[inside]).float().mean()
        return loss, {"loss": loss.item(), "right": right.item()}

    def _stack(self, lessons: list[Lesson]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows [B, T, H], positions [3, B, T] and targets [B, T] (-1 where nothing is asked)."""
        made = [self._sequence(lesson) for lesson in lessons]
        longest = max(len(rows) for rows, _, _ in made)
        rows = torch.stack([F.pad(r, (0, 0, 0, longest - len(r))) for r, _, _ in made])
        positions = torch.stack([F.pad(p, (0, longest - p.shape[1])) for _, p, _ in made], dim=1)
        targets = torch.stack([F.pad(t, (0, longest - len(t)), value=-1) for _, _, t in made])
        return rows, positions.to(self.device), targets

    def _sequence(self, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
        config, device = self.config, self.device
        codes = lesson.codes[:MAX_CODES].to(device)
        before = F.pad(
            codes, (1, 0), value=config.tts_codec_start_token_id
        )  # what each step is fed
        is_whole = len(codes) == len(lesson.codes)
        after = F.pad(codes, (0, 1), value=config.tts_codec_end_token_id if is_whole else -1)
        reply = reply_stream(lesson.reply_rows.to(device).float(), self.markers, len(before))
        voice = self.markers.voices[lesson.voice] + self.talker.embed_codes(
            torch.tensor(config.tts_codec_pad_token_id, device=device)
        )
        prompt = lesson.prompt_rows.to(device).float()
        rows = torch.cat([prompt, voice[None], reply + self.talker.embed_codes(before)])
        targets = F.pad(after, (len(prompt) + 1, 0), value=-1)
        return rows, speech_positions(len(prompt), len(before)), targets


def reply_stream(reply_rows: Tensor, markers: Markers, length: int) -> Tensor:
    """The rows r_0 … of a reply: its text, the end marker once, the pad marker for ever; cut to `length`."""
    pads = markers.pad.expand(max(0, length - len(reply_rows) - 1), -1)
    return torch.cat([reply_rows, markers.end[None], pads])[:length]


def speech_positions(prompt_len: int, num_steps: int) -> Tensor:
    """Positions [3, prompt + voice + steps] as the running model assigns them."""
    timeline = Timeline()
    prompt = timeline.text(prompt_len)
    voice, first, second = timeline.talker_start()
    steps = torch.arange(second - 1, second - 1 + num_steps)
    steps[0] = first
    return torch.cat([prompt, torch.cat([torch.tensor([voice]), steps]).expand(3, -1)], dim=1)


def initialise(talker: Talker) -> None:
    """Start from scratch: matrices by fan-in, residual outputs smaller, norms at one."""
    depth = len(talker.model.layers)
    for name, weight in talker.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() == 1:
            nn.init.ones_(weight)
        elif "embed_tokens" in name:
            nn.init.normal_(weight, std=0.15)  # the size of the Thinker's own embeddings
        else:
            scale = (
                (2 * depth) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            )
            nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)


@torch.inference_mode()
def make_lessons(
    source: FrozenThinker, tokenizer: codec.Tokenizer, clips: list[Clip], seed: int
) -> list[Lesson]:
    """Give every clip a chat in which its text is the reply; run the Thinker over it."""
    lessons = []
    for i, (clip, coded) in enumerate(
        zip(clips, dit.code_clips(tokenizer, clips, source.device), strict=True)
    ):
        rng = np.random.default_rng((seed, i))
        system = SYSTEM_PROMPTS[int(rng.integers(len(SYSTEM_PROMPTS)))]
        prompt = source.chat(system, sentence(seed + 77, i))
        embedded = source.embed([*prompt, *source.tokenizer.encode(clip.text)])
        rows = (source.hidden(embedded[None])[0] + embedded).half().cpu()
        lessons.append(Lesson(rows[: len(prompt)], rows[len(prompt) :], coded.codes, clip.voice))
        if i % 500 == 0:
            log.info("lessons %d of %d", i, len(clips))
    return lessons


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
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    speech, tokenizer = Speech(args.data), codec.load(args.codec)
    source = FrozenThinker.load(args.checkpoint, args.device)
    assert source.config.talker is not None
    stage = TalkerStage(
        make_lessons(source, tokenizer, speech.train, args.seed),
        make_lessons(source, tokenizer, speech.kept_out, args.seed + 1),
        Markers.of(source),
        source.config.talker,
        batch=args.batch,
        lr=args.lr or 5e-4,
        device=args.device,
        seed=args.seed,
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
