"""Train the flow-matching transformer (codes and voice to mel) with the block mask it runs with.

Conditional flow matching: x_t = (1 - t) noise + t mel, the network predicts mel - noise. Three times in four are those
at which the sampler evaluates: a handful at run time, so these are worth knowing best. The others are drawn between.
The noise spreads wider here than where the sampler starts (`noise_scale`), which works as a temperature below one does:
what is likely is said more clearly.

    python -m recipes.tiny.dit --out ~/.cache/parley/tiny/dit --codec ~/.cache/parley/tiny/codec
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.codec.dit import Dit
from model.codec.solver import integrate, time_plan
from model.codec.voice import Voice
from recipes.tiny import codec, loop, tree
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.config import SolverConfig

SEGMENT_BLOCKS = 8  # 1.92 s: every layer's reach several times over
REF_FRAMES = 200
SOLVER = tree.codec_decoder().solver
NOISE = 0.4  # its spread
MEL_SCALE = 3.0  # spread of log mel; keeps the loss near one

log = logging.getLogger("dit")


@dataclass(frozen=True, slots=True)
class CodedClip:
    """A clip with its codes [N] and mel [4 N, M] (float16)."""

    voice: int
    codes: Tensor
    mel: Tensor


class DitStage:
    shipped: tuple[str, ...] = ("dit",)

    def __init__(
        self,
        train: list[CodedClip],
        kept_out: list[CodedClip],
        voices: list[Voice],
        *,
        batch: int,
        lr: float,
        device: str,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.train, self.kept_out, self.batch, self.lr, self.device = (
            train,
            kept_out,
            batch,
            lr,
            device,
        )
        self.cond = torch.stack([v.cond for v in voices]).to(device)
        self.ref_mel = torch.stack([v.ref_mel for v in voices]).to(device)
        self.odds = clip_odds(train)
        self.dit = Dit(tree.codec_decoder().dit)
        self.dit.reset_parameters()
        meanings = codec.meaning(torch.arange(tree.NUM_CODES))
        embed_by_value(self.dit.text_embed.codec_embed.weight, meanings)
        with (
            torch.no_grad()
        ):  # velocity starts at its mean over everything: mean mel minus mean noise (0)
            self.dit.proj_out.bias.copy_(torch.cat([c.mel for c in train[:200]]).float().mean(0))
        self.parts: dict[str, nn.Module] = {"dit": self.dit.to(device)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dit": torch.optim.AdamW(
                self.dit.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
            )
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        clips = [self.train[i] for i in rng.choice(len(self.train), self.batch, p=self.odds)]
        codes, mel, voices = (x.to(self.device) for x in cut(clips, rng))
        # Drawn on the CPU, so that every device sees the same.
        noise = torch.from_numpy(rng.standard_normal(mel.shape, np.float32)).to(self.device)
        t = torch.from_numpy(draw_times(rng, self.batch)).to(self.device)
        with loop.half_precision(self.device):
            loss = self._loss(mel, noise, t, codes, voices)
        optimizer = self.optimizers["dit"]
        loop.warm_up(optimizer, step, self.lr, 300)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.dit.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item()}

    def validate(self) -> dict[str, float]:
        """Loss on kept-out clips at fixed noise, and the mel distance of the sampler as it will run."""
        rng = np.random.default_rng(0)
        clips = self.kept_out[:: max(1, len(self.kept_out) // 32)]
        codes, mel, voices = (x.to(self.device) for x in cut(clips, rng))
        noise = torch.from_numpy(rng.standard_normal(mel.shape, np.float32)).to(self.device)
        t = torch.linspace(0.02, 0.98, len(clips), device=self.device)
        loss = self._loss(mel, noise, t, codes, voices).item()
        made = self.sample(noise, codes, voices)
        return {"score": loss, "sampled_mel_l1": (made - mel).abs().mean().item()}

    def sample(self, noise: Tensor, codes: Tensor, voices: Tensor) -> Tensor:
        return sample(self.dit, noise, codes, self.cond[voices], self.ref_mel[voices])

    def _loss(self, mel: Tensor, noise: Tensor, t: Tensor, codes: Tensor, voices: Tensor) -> Tensor:
        at, start = t[:, None, None], NOISE * noise
        x = (1 - at) * start + at * mel
        velocity = self.dit.velocity(x, codes, self.cond[voices], self.ref_mel[voices], t)
        return F.mse_loss(velocity.float(), mel - start) / MEL_SCALE


def draw_times(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Times to train at: mostly those of the sampler, else spaced as it spaces them (crowded towards noise)."""
    plan = time_plan(SOLVER)
    exact = np.array(plan.times)[list(plan.time_of_evaluation)]
    between = 1 - np.cos(math.pi / 2 * rng.random(count))
    return np.where(rng.random(count) < 0.75, rng.choice(exact, count), between).astype(np.float32)


def embed_by_value(table: Tensor, values: Tensor, seed: int = 0) -> None:
    """Start an embedding of codes [N, C], in place, such that codes with like meanings [N, D] lie close."""
    mix = torch.randn(
        values.shape[1], table.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        scale = table[: len(values)].std()
        near = values @ mix
        table[: len(values)].mul_(0.3).add_(0.95 * scale * near / near.std())


def sample(
    dit: Dit,
    noise: Tensor,
    codes: Tensor,
    cond: Tensor,
    ref_mel: Tensor,
    solver: SolverConfig = SOLVER,
) -> Tensor:
    """Integrate whole clips [B, T, M] plainly; what the streaming sampler approximates."""
    plan = time_plan(solver)

    def velocity(evaluation: int, x: Tensor) -> Tensor:
        t = x.new_full((len(x),), plan.times[plan.time_of_evaluation[evaluation]])
        return dit.velocity(x, codes, cond, ref_mel, t)

    return integrate(velocity, noise * dit.config.noise_scale, solver, plan)


def cut(clips: list[CodedClip], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Cut each clip at a block boundary: codes [B, N], mel [B, 4 N, M], voices [B]; silence behind short ones."""
    block = tree.DIT["block_size"] // codec.REPEATS
    length = SEGMENT_BLOCKS * block
    codes, mels = [], []
    for clip in clips:
        start = int(rng.integers(0, max(1, (len(clip.codes) - length) // block + 2))) * block
        start = max(0, min(start, (len(clip.codes) - 1) // block * block))
        part = clip.codes[start : start + length]
        mel = clip.mel[start * codec.REPEATS : (start + length) * codec.REPEATS].float()
        missing = length - len(part)
        # The code of silence is the clip's own last one: every clip ends in silence.
        codes.append(F.pad(part, (0, missing), value=int(clip.codes[-1])))
        mels.append(F.pad(mel, (0, 0, 0, missing * codec.REPEATS), value=codec.SILENCE))
    return torch.stack(codes), torch.stack(mels), torch.tensor([c.voice for c in clips])


def clip_odds(clips: list[CodedClip]) -> np.ndarray:
    """Chance of each clip: by length, and every voice equally often."""
    lengths = np.array([len(c.codes) for c in clips], np.float64)
    owner = np.array([c.voice for c in clips])
    share = np.bincount(owner, lengths, len(VOICE_NAMES))
    return lengths / share[owner] / len(set(owner))


@torch.inference_mode()
def code_clips(tokenizer: codec.Tokenizer, clips: list[Clip], device: str) -> list[CodedClip]:
    """Encode clips one by one, each whole."""
    tokenizer = tokenizer.to(device)
    coded = []
    for clip in clips:
        codes, mel, _ = codec.encode_clip(tokenizer, clip)
        coded.append(CodedClip(clip.voice, codes.cpu(), mel.half().cpu()))
    return coded


def make_voices(speech: Speech, seed: int = 0) -> list[Voice]:
    """Describe the voices in the order of `VOICE_NAMES`: a fixed random vector, and two seconds of their speech."""
    rng = torch.Generator().manual_seed(seed)
    by_source = {source: (name, token) for name, (source, token) in tree.VOICES.items()}
    voices = []
    for i, source in enumerate(VOICE_NAMES):
        name, token = by_source[source]
        clip = next(
            c
            for c in (*speech.train, *speech.kept_out)
            if c.voice == i and c.num_frames >= REF_FRAMES
        )
        cond = torch.randn(tree.DIT["enc_emb_dim"], generator=rng)
        voices.append(Voice(name, token, cond, clip.mel()[:REF_FRAMES]))
    return voices


def load(out: Path, *, best: bool = True) -> Dit:
    dit = Dit(tree.codec_decoder().dit)
    dit.load_state_dict(loop.load_average(out, "dit", best=best))
    return dit.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=100_000, batch=8)
    parser.add_argument("--codec", type=Path, required=True, help="the codec's run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    speech, tokenizer = Speech(args.data), codec.load(args.codec)
    train = code_clips(tokenizer, speech.train, args.device)
    kept_out = code_clips(tokenizer, speech.kept_out, args.device)
    log.info("coded clips=%d", len(train))
    stage = DitStage(
        train,
        kept_out,
        make_voices(speech),
        batch=args.batch,
        lr=args.lr or 5e-4,
        device=args.device,
        seed=args.seed,
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
