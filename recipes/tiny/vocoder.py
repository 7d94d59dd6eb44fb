"""Train the vocoder (mel to waveform): spectral losses first, an adversary afterwards.

Multi-resolution STFT and mel losses alone give intelligible speech early; from `--adversary-after` on,
period and spectrogram discriminators sharpen it (least squares, with feature matching).

    python -m recipes.tiny.vocoder --out ~/.cache/parley/tiny/vocoder
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.vocoder import Vocoder
from recipes.tiny import loop, tree
from recipes.tiny.dataset import Speech
from recipes.tiny.discriminators import Discriminators, adversary_loss, generator_loss
from recipes.tiny.mel import log_mel

if TYPE_CHECKING:
    from pathlib import Path

STFT_SIZES = (256, 512, 1024, 2048)
SEGMENT_FRAMES = 48
MEL_WEIGHT, STFT_WEIGHT, ADVERSARY_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0, 0.1, 0.2


class VocoderStage:
    """Generator and, later, discriminators."""

    shipped: tuple[str, ...] = ("vocoder",)

    def __init__(
        self, speech: Speech, *, batch: int, lr: float, adversary_after: int, device: str, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.speech, self.batch, self.lr, self.device = speech, batch, lr, device
        self.adversary_after = adversary_after
        self.vocoder, self.adversary = Vocoder(tree.codec_decoder().bigvgan), Discriminators()
        self.vocoder.reset_parameters()
        self.parts: dict[str, nn.Module] = {
            "vocoder": self.vocoder.to(device),
            "adversary": self.adversary.to(device),
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.AdamW(part.parameters(), lr, betas=(0.8, 0.99), weight_decay=0.0)
            for name, part in self.parts.items()
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        wave, mel, _ = (
            x.to(self.device) for x in self.speech.segments(rng, self.batch, SEGMENT_FRAMES)
        )
        made = self.vocoder(mel)
        spectral, figures = spectral_loss(made, wave)
        total = spectral
        if step >= self.adversary_after:
            judged = -(
                -self.batch // 2
            )  # half the batch: on a CPU the judges cost more than the vocoder
            figures["adversary"] = self._train_adversary(
                step, made[:judged].detach(), wave[:judged]
            )
            with torch.no_grad():
                real = self.adversary(wave[:judged])
            fooled, features = generator_loss(real, self.adversary(made[:judged]))
            total = spectral + ADVERSARY_WEIGHT * fooled + FEATURE_WEIGHT * features
            figures |= {"fooled": fooled.item(), "features": features.item()}
        self._descend("vocoder", step, total)
        return figures

    def _train_adversary(self, step: int, made: Tensor, wave: Tensor) -> float:
        loss = adversary_loss(self.adversary(wave), self.adversary(made))
        self._descend("adversary", step - self.adversary_after, loss)
        return loss.item()

    def _descend(self, name: str, step: int, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        loop.warm_up(optimizer, step, self.lr)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts[name].parameters(), 1.0)
        optimizer.step()

    def validate(self) -> dict[str, float]:
        """Spectral distance on kept-out utterances of both voices."""
        losses = []
        clips = self.speech.kept_out
        for clip in clips[:: max(1, len(clips) // 16)]:
            wave = clip.wave()[None].to(self.device)
            losses.append(spectral_loss(self.vocoder(log_mel(wave)), wave)[0].item())
        return {"score": float(np.mean(losses))}


def spectral_loss(made: Tensor, wave: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Distance of log mel, and of spectra at several resolutions (log amplitude and spectral convergence)."""
    mel = F.l1_loss(log_mel(made), log_mel(wave))
    stft = torch.stack([_stft_distance(made, wave, size) for size in STFT_SIZES]).mean()
    return MEL_WEIGHT * mel + STFT_WEIGHT * stft, {"mel": mel.item(), "stft": stft.item()}


def _stft_distance(made: Tensor, wave: Tensor, size: int) -> Tensor:
    a, b = _amplitude(made, size), _amplitude(wave, size)
    # Over the whole batch: relative to a silent cut alone, the smallest sound would be an enormous error.
    convergence = (b - a).norm() / b.norm().clamp(min=1e-3)
    return convergence + F.l1_loss(a.log(), b.log())


def _amplitude(wave: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()


def load(out: Path, *, best: bool = True) -> Vocoder:
    """Return the trained vocoder of a run, ready for inference."""
    vocoder = Vocoder(tree.codec_decoder().bigvgan)
    vocoder.load_state_dict(loop.load_average(out, "vocoder", best=best))
    return vocoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=200_000, batch=4)
    parser.add_argument("--adversary-after", type=int, default=8_000)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more would only wait for each other at these sizes
    stage = VocoderStage(
        Speech(args.data),
        batch=args.batch,
        lr=args.lr or 5e-4,
        adversary_after=args.adversary_after,
        device=args.device,
        seed=args.seed,
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
