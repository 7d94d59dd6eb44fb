"""Train the codec: mel to one code every 40 ms (25 per second), and a plain decoder back as its judge.

The encoder is used in training only; at run time codes come from the Talker and become mel in the DiT. So it may know
what is said: ears trained beside it hear where in the clip each phoneme of the text sounds, and it is told. A code then
holds the phoneme that was meant, even where the sound alone leaves doubt, and how it sounds here.

Three pressures shape a code:

* one finite scalar quantiser of 1 000 entries: 250 bits per second leave no room for the voice, which the
  decoder is told;
* mel reconstruction, so that timing and intonation survive;
* a CTC loss on phonemes read from the codes, so that codes follow what is said. A Talker that starts
  from text can then predict them.

    python -m recipes.tiny.codec --out ~/.cache/parley/tiny/codec
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.tiny import align, loop
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.mel import FLOOR, NUM_BINS
from recipes.tiny.phonemes import PHONEMES, text_phonemes
from recipes.tiny.tree import CODE_LEVELS, NUM_CODES, REPEATS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SILENCE = float(np.log(FLOOR))
CTC_WEIGHT = 2.0
# Mel is roughly -6 ± 3; networks prefer it around zero.
MEL_MEAN, MEL_STD = -6.0, 3.0
NUM_READ = 1 + len(PHONEMES)  # what a reader tells apart: a blank, and each phoneme
HALVED = 2  # the encoder's layer behind which a step takes 20 ms


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


class Tokenizer(nn.Module):
    """Ears, encoder, quantiser, phoneme reader and plain decoder."""

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
        # Two phoneme slots per code: quick speech has more than one phoneme in 40 ms, and CTC wants blanks.
        self.reader = nn.Sequential(
            nn.Linear(len(CODE_LEVELS), width),
            Block(width),
            Block(width),
            nn.Linear(width, 2 * NUM_READ),
        )
        self.voice = nn.Embedding(len(VOICE_NAMES), width)
        self.widen = nn.Linear(len(CODE_LEVELS), width)
        self.coarse = nn.Sequential(*(Block(width) for _ in range(3)))
        self.fine = nn.Sequential(
            *(Block(width) for _ in range(3)), nn.LayerNorm(width), nn.Linear(width, NUM_BINS)
        )

    def hear(self, mel: Tensor) -> Tensor:
        """Return log-probabilities of blank and phonemes in mel [B, T, M], every 20 ms: [B, T / 2, 1 + phonemes]."""
        return self.ears((mel - MEL_MEAN) / MEL_STD).float().log_softmax(-1)  # type: ignore[no-any-return]

    def encode(self, mel: Tensor, sounding: Tensor) -> tuple[Tensor, Tensor]:
        """Turn mel [B, T, M], T a multiple of 4, into (values [B, T / 4, D], codes [B, T / 4]).

        `sounding` [B, T / 2] is the phoneme of each 20 ms (0: none).
        """
        x = (mel - MEL_MEAN) / MEL_STD
        for i, layer in enumerate(self.encoder):
            x = layer(x)
            if i == HALVED:
                x = x + self.told(sounding)
        values, codes = self.quantizer(x)
        return values, codes

    def decode(self, values: Tensor, voices: Tensor) -> Tensor:
        """Turn values [B, N, D] and voice ids [B] into mel [B, 4 N, M]."""
        x = self.coarse(self.widen(values) + self.voice(voices)[:, None])
        return self.fine(x.repeat_interleave(REPEATS, 1)).float() * MEL_STD + MEL_MEAN

    def read(self, values: Tensor) -> Tensor:
        """Return log-probabilities of blank and phonemes, two per code, [B, 2 N, 1 + phonemes]."""
        return self.reader(values).unflatten(2, (2, -1)).flatten(1, 2).float().log_softmax(-1)


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
        return {"score": figures["mel"] + CTC_WEIGHT * figures["ctc"], **figures}

    def _loss(self, clips: list[Clip]) -> tuple[Tensor, dict[str, float]]:
        mel, frames = (x.to(self.device) for x in padded_mel(clips))
        voices = torch.tensor([clip.voice for clip in clips], device=self.device)
        targets = [torch.tensor(text_phonemes(clip.text)) for clip in clips]
        heard = self.tokenizer.hear(mel)
        values, codes = self.tokenizer.encode(mel, sounding(heard, frames, targets))
        made = self.tokenizer.decode(values, voices)
        inside = torch.arange(mel.shape[1], device=self.device) < frames[:, None]
        mel_loss = (made - mel).abs().mean(-1)[inside].mean()
        ctc, ears = (
            F.ctc_loss(
                odds.transpose(0, 1),
                torch.cat(targets).to(self.device),
                frames // 2,
                torch.tensor([len(t) for t in targets]),
                zero_infinity=True,
            )
            for odds in (self.tokenizer.read(values), heard)
        )
        used = codes[inside[:, ::REPEATS]].unique().numel() / NUM_CODES
        return mel_loss + CTC_WEIGHT * ctc + ears, {
            "mel": mel_loss.item(),
            "ctc": ctc.item(),
            "ears": ears.item(),
            "used": used,
        }


def sounding(heard: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Which phoneme sounds in each 20 ms [B, T / 2] (0: none), by what the ears `heard` [B, T / 2, 1 + phonemes].

    `frames` [B] are of mel; a clip too short for its phonemes has none.
    """
    found = torch.zeros(heard.shape[:2], dtype=torch.long)
    odds = heard.detach().cpu().numpy()
    for i, (own, count) in enumerate(zip(targets, (frames // 2).tolist(), strict=True)):
        try:
            places = align.sounding(odds[i, :count], own.tolist(), np.arange(float(count)))
        except ValueError:
            continue
        found[i, :count] = F.pad(own, (0, 1))[places]  # none: the last, a zero
    return found.to(heard.device)


@torch.inference_mode()
def encode_clip(tokenizer: Tokenizer, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values [N, D] and codes [N] of a whole clip, and its mel [4 N, M]."""
    mel, frames = padded_mel([clip])
    mel = mel.to(tokenizer.told.weight.device)
    told = sounding(tokenizer.hear(mel), frames, [torch.tensor(text_phonemes(clip.text))])
    values, codes = tokenizer.encode(mel, told)
    return values[0], codes[0], mel[0]


def padded_mel(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Stack clips into mel [B, T, M], T whole codes, silence behind; and their frame counts [B]."""
    mels = [clip.mel() for clip in clips]
    frames = torch.tensor([len(mel) for mel in mels])
    longest = -(-int(frames.max()) // REPEATS) * REPEATS
    return torch.stack([F.pad(m, (0, 0, 0, longest - len(m)), value=SILENCE) for m in mels]), frames


def load(out: Path, *, best: bool = True) -> Tokenizer:
    tokenizer = Tokenizer()
    tokenizer.load_state_dict(loop.load_average(out, "tokenizer", best=best))
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
