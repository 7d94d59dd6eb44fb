"""Teach the Thinker to hear: fine-tune Whisper's encoder so that sound works like its transcript typed.

Two losses, the language model frozen in both:

* **CTC** of the rows against the transcript's tokens, the output layer being the Thinker's own embeddings of them.
  A row thus lies where its word's embedding lies. Cheap: the language model does not run.
* **Distillation** (`--distil-after`): with the audio in place of the transcript, the distribution over each token of
  a reply must be what it is with the transcript. That makes spoken questions worth as much as typed ones. From then on
  the language model may give way a little (`adapters.py`): it has never seen words that are spread over rows. What it
  says to typed words is held where it was. Every third clip is to be written down instead, asked as the server asks.

    python -m recipes.tiny.hearing --out ~/.cache/parley/tiny/hearing --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.mel import LogMel
from recipes.tiny import loop, tree
from recipes.tiny.adapters import Adapters
from recipes.tiny.callers import INPUT_RATE, Call, read_calls
from recipes.tiny.dataset import ALIKE, to_wave
from recipes.tiny.edits import edit_distance
from recipes.tiny.exchanges import DICTATION_PROMPT, DICTATION_REQUEST
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.turns import closing, opening

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINE_SCALE = 20.0
CTC_WEIGHT = 0.3  # beside distillation
VALIDATED = 60  # clips
# Whisper's layers know many voices already; ours are few, and synthetic.
LEARNED_SHARE = 0.5
ROW_STD = 0.13 * tree.STREAM_SCALE  # spread of the Thinker's own embeddings

Sample = tuple[Call, "NDArray[np.int16]"]


class Alignment(nn.Module):
    """What training adds: the blank of CTC. Not shipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blank = nn.Parameter(torch.randn(1, width))


class HearingStage:
    shipped: tuple[str, ...] = ("audio", "listening")

    def __init__(
        self,
        source: FrozenThinker,
        train: list[Sample],
        kept_out: list[Sample],
        *,
        batch: int,
        lr: float,
        distil_after: int,
        distil_every: int = 1,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.source, self.thinker = source, source.thinker
        self.train, self.kept_out = train, kept_out
        self.batch, self.lr = batch, lr
        self.distil_after, self.distil_every = distil_after, distil_every
        self.workers = ThreadPoolExecutor(1 if source.device == "cpu" else 8)
        self.log_mel = LogMel(
            self.thinker.config.audio.num_mel_bins, self.thinker.config.audio.block_frames
        )
        self.encoder = self.thinker.audio_tower.float().requires_grad_(True)
        self.encoder.prepare()  # its constants follow the new dtype
        nn.init.normal_(self.encoder.proj.weight, std=ROW_STD * self.encoder.proj.in_features**-0.5)
        nn.init.zeros_(self.encoder.proj.weight[tree.SOURCE_HIDDEN :])  # sound spells nothing
        self.alignment = Alignment(self.thinker.config.decoder.hidden_size).to(source.device)
        self.adapters = Adapters.around(source)
        # CTC runs over the tokens that occur, not over all 49 152.
        self.words = sorted(
            {t for call, _ in (*train, *kept_out) for t in source.tokenizer.encode(call.question)}
        )
        self.place = {token: i + 1 for i, token in enumerate(self.words)}
        table = self.thinker.model.embed_tokens.weight.detach()[self.words].float()
        self.targets = F.normalize(table - table.mean(0), dim=1)
        learned = [x for x in self.encoder.named_parameters() if not x[0].startswith("proj.")]
        self.parts: dict[str, nn.Module] = {
            "audio": self.encoder,
            "alignment": self.alignment,
            "listening": self.adapters,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "all": torch.optim.AdamW(
                [
                    {"params": [p for _, p in learned], "share": LEARNED_SHARE},
                    {"params": [*self.encoder.proj.parameters(), *self.alignment.parameters()]},
                    {"params": list(self.adapters.parameters())},
                ],
                lr,
                betas=(0.9, 0.98),
                fused=True,
            )
        }

    def train_step(self, step: int, rng: np.random.Generator) -> dict[str, float]:
        drawn = [self.train[i] for i in rng.choice(len(self.train), ALIKE * self.batch)]
        drawn.sort(key=lambda sample: sample[0].num_samples)
        first = int(rng.integers(ALIKE)) * self.batch
        chosen = drawn[first : first + self.batch]
        rngs = rng.spawn(
            self.batch
        )  # one each, so that the order in which threads finish changes nothing
        waves = list(self.workers.map(augment, (to_wave(pcm) for _, pcm in chosen), rngs))
        with loop.half_precision(self.source.device):
            distil = step >= self.distil_after and step % self.distil_every == 0
            loss, figures = self._loss([c for c, _ in chosen], waves, distil=distil, rngs=rngs)
            if step >= self.distil_after and not distil:
                loss = CTC_WEIGHT * loss
        loop.warm_up(self.optimizers["all"], step, self.lr, 300)
        self.optimizers["all"].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.encoder.parameters(), *self.alignment.parameters()], 1.0)
        self.optimizers["all"].step()
        return figures

    def validate(self) -> dict[str, float]:
        """Losses, and token errors of greedy CTC, on kept-out voices."""
        parts = []
        for i in range(0, min(len(self.kept_out), VALIDATED), 20):
            calls = [call for call, _ in self.kept_out[i : i + 20]]
            waves = [to_wave(pcm) for _, pcm in self.kept_out[i : i + 20]]
            with loop.half_precision(self.source.device):
                parts.append(self._loss(calls, waves, distil=True)[1])
        figures = {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}
        return {"score": figures["distil"] + 0.1 * (figures["written"] + figures["ctc"]), **figures}

    def _loss(
        self,
        calls: list[Call],
        waves: list[Tensor],
        *,
        distil: bool,
        rngs: list[np.random.Generator] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        rows = self.rows(waves, rngs)
        tokens = [self.source.tokenizer.encode(call.question) for call in calls]
        loss, wrong = self._ctc(rows, tokens)
        figures = {"ctc": loss.item(), "wrong_tokens": wrong}
        if distil:
            understood, more = self._understand(calls, rows, tokens)
            loss, figures = understood + CTC_WEIGHT * loss, figures | more
        return loss, figures

    def rows(
        self, waves: list[Tensor], rngs: list[np.random.Generator] | None = None
    ) -> list[Tensor]:
        """Encode whole clips, masked if there are `rngs`; blocks of all of them go through the encoder together."""
        block = self.log_mel.block_samples // 160
        mels = list(self.workers.map(lambda wave: self.log_mel(wave[None])[0], waves))
        if rngs is not None:
            mels = [mask(mel, rng) for mel, rng in zip(mels, rngs, strict=True)]
        blocks = [mel.to(self.source.device).split(block) for mel in mels]
        encoded = self.encoder.encode_blocks([b for clip in blocks for b in clip])
        counts = [len(clip) for clip in blocks]
        starts = np.cumsum([0, *counts])
        return [torch.cat(encoded[a : a + n]) for a, n in zip(starts, counts, strict=False)]

    def _ctc(self, rows: list[Tensor], tokens: list[list[int]]) -> tuple[Tensor, float]:
        outputs = torch.cat([F.normalize(self.alignment.blank, dim=1), self.targets])
        lengths = torch.tensor([len(r) for r in rows])
        padded = nn.utils.rnn.pad_sequence(
            [F.normalize(r.float(), dim=1) for r in rows]
        )  # [T, B, H]
        log_probs = (COSINE_SCALE * padded @ outputs.T).float().log_softmax(-1)
        wanted = [torch.tensor([self.place[t] for t in ids]) for ids in tokens]
        loss = F.ctc_loss(
            log_probs,
            torch.cat(wanted).to(padded.device),
            lengths,
            torch.tensor([len(w) for w in wanted]),
            zero_infinity=True,
        )
        best = log_probs.argmax(-1).T.cpu()
        pairs = zip(best, lengths.tolist(), wanted, strict=True)
        errors = sum(edit_distance(collapse(b[:n].tolist()), w.tolist()) for b, n, w in pairs)
        return loss, errors / sum(len(w) for w in wanted)

    def _understand(
        self, calls: list[Call], rows: list[Tensor], tokens: list[list[int]]
    ) -> tuple[Tensor, dict[str, float]]:
        """KL from replies' distributions given the transcript to those given the sound; each third is dictation."""
        replies = [self.source.tokenizer.encode(call.reply) for call in calls]
        turns = list(zip(rows, tokens, replies, strict=True))
        written = turns[2::3]
        answered = [turn for i, turn in enumerate(turns) if i % 3 != 2]
        typed = [self.source.turn(self.source.embed(said), reply) for _, said, reply in answered]
        # One typed turn in every batch holds the language model where it was.
        heard = [
            self.source.turn(self.source.sound(clip), reply) for clip, _, reply in answered
        ] + typed[-1:]
        counts = [len(reply) + 1 for _, _, reply in answered]  # the last one predicts the end
        with torch.no_grad(), self.adapters.off():
            wanted = self.source.reply_logits(typed, counts).log_softmax(-1)
            wanted = torch.cat([wanted, wanted[-counts[-1] :]])
        dictated = [self._dictation(clip, said) for clip, said, _ in written]
        said_counts = [len(said) + 1 for _, said, _ in written]
        logits = self.source.reply_logits([*heard, *dictated], [*counts, counts[-1], *said_counts])
        given, spelled = logits.split([len(wanted), len(logits) - len(wanted)])
        kl = F.kl_div(given.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
        end = [self.source.tokenizer.im_end_id]
        said = torch.tensor([t for _, said, _ in written for t in (*said, *end)])
        written_loss = F.cross_entropy(spelled, said.to(spelled.device))
        return kl + 0.5 * written_loss, {"distil": kl.item(), "written": written_loss.item()}

    def _dictation(self, clip: Tensor, said: list[int]) -> Tensor:
        """What the server asks when it shows the user's words, and these as the reply."""
        tokenizer, embed = self.source.tokenizer, self.source.embed
        request = [*tokenizer.encode(DICTATION_REQUEST), *closing(tokenizer)]
        return torch.cat(
            [
                embed(opening(tokenizer, DICTATION_PROMPT)),
                self.source.sound(clip),
                embed([*request, *said]),
            ]
        )


def augment(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """Another speaker's pitch and pace, a room, a microphone and background noise, each now and then."""
    if rng.random() < 0.7:  # six synthetic voices are few
        factor = float(np.exp(rng.uniform(-0.18, 0.18)))
        wave = torch.from_numpy(soxr.resample(wave.numpy(), INPUT_RATE, INPUT_RATE * factor, "LQ"))
    if rng.random() < 0.4:  # exponentially decaying noise is a plain but serviceable room
        seconds = rng.uniform(0.05, 0.4)
        decay = np.exp(-6.9 * np.arange(int(INPUT_RATE * seconds)) / (INPUT_RATE * seconds))
        room = rng.standard_normal(len(decay)) * decay * rng.uniform(0.02, 0.15)
        room[0] = 1.0
        size = 1 << (len(wave) + len(room)).bit_length()
        wet = np.fft.irfft(np.fft.rfft(wave.numpy(), size) * np.fft.rfft(room, size))[: len(wave)]
        wave = torch.from_numpy(wet.astype(np.float32))
    if rng.random() < 0.6:
        colour = rng.uniform(0, 1)  # white to brown
        spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
        noise = np.fft.irfft(
            spectrum / np.maximum(1, np.arange(len(spectrum))) ** colour, len(wave)
        )
        gain = (
            10 ** (-rng.uniform(5, 40) / 20)
            * float(wave.square().mean().sqrt())
            / max(noise.std(), 1e-9)
        )
        wave = wave + torch.from_numpy((noise * gain).astype(np.float32))
    return (wave * float(rng.uniform(0.3, 1.5))).clamp(-1, 1)


def mask(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """Hide a band and a moment or two of log-mel [T, M] behind its mean (SpecAugment, Park et al. 2019)."""
    masked, mean = mel.clone(), mel.mean()
    for _ in range(2):
        low, height = int(rng.integers(mel.shape[1])), int(rng.integers(12))
        start, length = int(rng.integers(len(mel))), int(rng.integers(20))
        masked[:, low : low + height] = mean
        masked[start : start + length] = mean
    return masked


def collapse(path: list[int]) -> list[int]:
    """Drop repeats, then blanks."""
    return [x for i, x in enumerate(path) if x and (i == 0 or x != path[i - 1])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    loop.add_arguments(parser, steps=60_000, batch=8)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the assembled checkpoint")
    parser.add_argument("--distil-after", type=int, default=4_000)
    parser.add_argument(
        "--distil-every", type=int, default=1, help="so many steps; CTC alone costs a tenth"
    )
    parser.set_defaults(data=Path("~/.cache/parley/tiny/callers").expanduser())
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = FrozenThinker.load(args.checkpoint, args.device)
    stage = HearingStage(
        source,
        [*read_calls(args.data, "callers"), *read_calls(args.data, "scenes")],
        read_calls(args.data, "kept-out"),
        batch=args.batch,
        lr=args.lr or 3e-4,
        distil_after=args.distil_after,
        distil_every=args.distil_every,
        seed=args.seed,
    )
    loop.train(stage, args.out, loop.budget(args))


if __name__ == "__main__":
    main()
