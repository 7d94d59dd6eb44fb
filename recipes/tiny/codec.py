"""Train the codec: mel to one code every 40 ms (25 per second), and a plain decoder back as its judge.

A code names a phoneme, or that none sounds, and says in which of twenty ways it sounds. Which phoneme is not guessed:
training speech is read from texts, and ears trained beside the codec hear where in the clip each phoneme of the text
sounds. Only the way is learned: by an encoder that knows the phoneme, a finite scalar quantiser of two numbers, and the
loss of what the decoder makes of it. So the ways are left to pitch, loudness and timing; no room is left for the voice,
which the decoder is told. The encoder is used in training only; at run time codes come from the Talker and become mel
in the DiT. Why: docs/decisions/0014.

    python -m recipes.tiny.codec --out ~/.cache/parley/tiny/codec
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.tiny import align, loop, storage
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.mel import FLOOR, NUM_BINS
from recipes.tiny.phonemes import PHONEMES, text_phonemes
from recipes.tiny.tree import CODE_LEVELS, NUM_CODES, NUM_SOUNDS, NUM_WAYS, REPEATS

if TYPE_CHECKING:
    from collections.abc import Sequence

SILENCE = float(np.log(FLOOR))
QUIET = -8.5  # mean log-mel; speech is louder than that, its pauses are not
# Mel is roughly -6 ± 3; networks prefer it around zero.
MEL_MEAN, MEL_STD = -6.0, 3.0
SHIPPED = Path(__file__).with_name("codec.safetensors")
NUM_READ = 1 + len(PHONEMES)  # what ears tell apart: a blank, and each phoneme
assert NUM_READ <= NUM_SOUNDS
QUARTERED = 4  # the encoder's layer behind which a step takes as long as a code


class Block(nn.Module):
    """Residual pair of convolutions over time, [B, T, C] to the same."""

    def __init__(self, width: int, kernel: int = 5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.out(F.gelu(y))


class Quantizer(nn.Module):
    """Finite scalar quantisation: each of a few numbers is rounded to one of `levels` values."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return values in [-1, 1] with straight-through gradient [B, T, D], and code ids [B, T]."""
        levels = torch.tensor(self.levels, device=x.device)
        top = (levels - 1).float()
        unit = x.float().sigmoid() * top  # 0 … levels - 1
        digits = unit + (unit.round() - unit).detach()
        place = torch.cat([levels.new_ones(1), levels[:-1]]).cumprod(0)
        return digits * 2 / top - 1, (digits.round().long() * place).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values [..., D] that belong to code ids."""
        digits, rest = [], codes
        for level in self.levels:
            digits.append((rest % level) * 2 / (level - 1) - 1)
            rest = rest // level
        return torch.stack(digits, -1)


def meaning(codes: Tensor) -> Tensor:
    """What codes [...] stand for: a one for their phoneme, and the way it sounds, [..., NUM_SOUNDS + D]."""
    return named(codes // NUM_WAYS, Quantizer(CODE_LEVELS).values(codes % NUM_WAYS))


def named(sounds: Tensor, values: Tensor) -> Tensor:
    """Put what sounds [...] before the values [..., D] of how it does."""
    return torch.cat([F.one_hot(sounds, NUM_SOUNDS).to(values.dtype), values], -1)


class Tokenizer(nn.Module):
    """Ears, encoder, quantiser and plain decoder."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.ears = nn.Sequential(
            Transposed(nn.Conv1d(NUM_BINS, width, 5, padding=2)),
            Block(width),
            Transposed(nn.Conv1d(width, width, 4, stride=2, padding=1)),
            *(Block(width, 9) for _ in range(3)),
            nn.LayerNorm(width),
            nn.Linear(width, NUM_READ),
        )
        self.told = nn.Embedding(NUM_READ, width)
        self.encoder = nn.Sequential(
            Transposed(nn.Conv1d(NUM_BINS, width, 5, padding=2)),
            Block(width),
            Transposed(nn.Conv1d(width, width, 4, stride=2, padding=1)),
            Block(width),
            Transposed(nn.Conv1d(width, width, 4, stride=2, padding=1)),
            *(Block(width) for _ in range(3)),
            nn.LayerNorm(width),
            nn.Linear(width, len(CODE_LEVELS)),
        )
        self.quantizer = Quantizer(CODE_LEVELS)
        self.voice = nn.Embedding(len(VOICE_NAMES), width)
        self.widen = nn.Linear(NUM_SOUNDS + len(CODE_LEVELS), width)
        self.coarse = nn.Sequential(*(Block(width) for _ in range(3)))
        self.fine = nn.Sequential(
            *(Block(width) for _ in range(3)), nn.LayerNorm(width), nn.Linear(width, NUM_BINS)
        )

    def hear(self, mel: Tensor) -> Tensor:
        """Return log-probabilities of blank and phonemes in mel [B, T, M], every 20 ms: [B, T / 2, 1 + phonemes]."""
        return self.ears((mel - MEL_MEAN) / MEL_STD).float().log_softmax(-1)  # type: ignore[no-any-return]

    def encode(self, mel: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """Turn mel [B, T, M], T a multiple of 4, into (meanings [B, T / 4, NUM_SOUNDS + D], codes [B, T / 4]).

        `sounds` [B, T / 4] is the phoneme of each code (0: none).
        """
        x = (mel - MEL_MEAN) / MEL_STD
        for i, layer in enumerate(self.encoder):
            x = layer(x)
            if i == QUARTERED:
                x = x + self.told(sounds)
        values, ways = self.quantizer(x)
        return named(sounds, values), sounds * NUM_WAYS + ways

    def decode(self, meanings: Tensor, voices: Tensor) -> Tensor:
        """Turn meanings [B, N, NUM_SOUNDS + D] and voice ids [B] into mel [B, 4 N, M]."""
        x = self.coarse(self.widen(meanings) + self.voice(voices)[:, None])
        return self.fine(x.repeat_interleave(REPEATS, 1)).float() * MEL_STD + MEL_MEAN


class Transposed(nn.Module):
    """Run a channels-first layer on [B, T, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(1, 2)).transpose(1, 2)
        return y


class CodecStage:
    shipped: tuple[str, ...] = ("tokenizer",)

    def __init__(self, speech: Speech, *, batch: int, lr: float, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.speech, self.batch, self.lr, self.device = speech, batch, lr, device
        self.tokenizer = Tokenizer().to(device)
        self.parts: dict[str, nn.Module] = {"tokenizer": self.tokenizer}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "tokenizer": torch.optim.AdamW(self.tokenizer.parameters(), lr, betas=(0.9, 0.98))
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        with loop.half_precision(self.device):
            loss, figures = self._loss(self.speech.pick_alike(rng, self.batch))
        optimizer = self.optimizers["tokenizer"]
        loop.warm_up(optimizer, step, self.lr)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        optimizer.step()
        return figures

    def validate(self) -> dict[str, float]:
        clips = self.speech.kept_out
        batches = [clips[i : i + 10] for i in range(0, len(clips), 10)]
        parts = [self._loss(batch)[1] for batch in batches]
        figures = {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}
        return {"score": figures["mel"], **figures}

    def _loss(self, clips: list[Clip]) -> tuple[Tensor, dict[str, float]]:
        mel, frames = (x.to(self.device) for x in padded_mel(clips))
        voices = torch.tensor([clip.voice for clip in clips], device=self.device)
        targets = [torch.tensor(text_phonemes(clip.text)) for clip in clips]
        heard = self.tokenizer.hear(mel)
        meanings, codes = self.tokenizer.encode(mel, sounding(heard, mel, frames, targets))
        made = self.tokenizer.decode(meanings, voices)
        inside = torch.arange(mel.shape[1], device=self.device) < frames[:, None]
        mel_loss = (made - mel).abs().mean(-1)[inside].mean()
        ears = F.ctc_loss(
            heard.transpose(0, 1),
            torch.cat(targets).to(self.device),
            frames // 2,
            torch.tensor([len(t) for t in targets]),
            zero_infinity=True,
        )
        used = codes[inside[:, ::REPEATS]].unique().numel() / NUM_CODES
        return mel_loss + ears, {"mel": mel_loss.item(), "ears": ears.item(), "used": used}


def sounding(heard: Tensor, mel: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Which phoneme each code of clips sounds [B, T / 4] (0: none), by what the ears `heard` [B, T / 2, NUM_READ].

    `frames` [B] of `mel` [B, T, M] are the clip's own; a clip too short for its phonemes has none.
    """
    found = torch.zeros(mel.shape[0], mel.shape[1] // REPEATS, dtype=torch.long)
    for i, (own, count) in enumerate(zip(targets, frames.tolist(), strict=True)):
        try:
            places = sounding_places(heard[i], mel[i, :count], own.tolist())
        except ValueError:
            continue
        found[i, : len(places)] = F.pad(own, (0, 1))[places]  # none: the last, a zero
    return found.to(heard.device)


def sounding_places(heard: Tensor, mel: Tensor, targets: Sequence[int]) -> Tensor:
    """Which of the targets each code of one clip sounds [N], by its place (-1: none).

    Raises:
        ValueError: the clip, mel [T, M], is too short for them.
    """
    loud = F.pad(mel.mean(1), (0, -len(mel) % REPEATS), value=SILENCE).view(-1, REPEATS).amax(1)
    odds = heard[: len(mel) // 2].detach().float().cpu().numpy()
    return torch.from_numpy(align.sounding(odds, targets, (loud < QUIET).cpu().numpy()))


@torch.inference_mode()
def encode_clip(tokenizer: Tokenizer, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes of a whole clip [N], its mel [4 N, M], and what the ears hear in it [2 N, NUM_READ]."""
    mel, frames = padded_mel([clip])
    mel = mel.to(tokenizer.told.weight.device)
    targets = [torch.tensor(text_phonemes(clip.text))]
    heard = tokenizer.hear(mel)
    _, codes = tokenizer.encode(mel, sounding(heard, mel, frames, targets))
    return codes[0], mel[0], heard[0]


def padded_mel(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Stack clips into mel [B, T, M], T whole codes, silence behind; and their frame counts [B]."""
    mels = [clip.mel() for clip in clips]
    frames = torch.tensor([len(mel) for mel in mels])
    longest = -(-int(frames.max()) // REPEATS) * REPEATS
    return torch.stack([F.pad(m, (0, 0, 0, longest - len(m)), value=SILENCE) for m in mels]), frames


def load(out: Path, *, best: bool = True) -> Tokenizer:
    """The codec of a run; without weights there, the one that lies in the repository."""
    tokenizer = Tokenizer()
    if (out / "best.pt").exists():
        weights = loop.load_average(out, "tokenizer", best=best)
    else:
        named = storage.read(SHIPPED)
        weights = {name.removeprefix("tokenizer."): value for name, value in named.items()}
    tokenizer.load_state_dict(weights)
    return tokenizer.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=30_000, batch=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stage = CodecStage(
        Speech(args.data), batch=args.batch, lr=args.lr or 1e-3, device=args.device, seed=args.seed
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
