"""How far the streamed codec decode is from the whole clip: the tables of `docs/details/codec.md`.

    python -m benchmarks.codec_distance [--codes 144] [--checkpoint FOLDER]

Without a checkpoint the weights are random, at two scales: 0.5 couples blocks weakly, 1.0 strongly.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.codec.decoder import CodecDecoder
from model.codec.noise import NoiseSource
from model.codec.sampler import FlowSampler
from model.codec.voice import Voice, load_voices
from model.config import DitConfig, OmniConfig, SolverConfig, Token2WavConfig, VocoderConfig
from model.windows import WindowSchedule

SOLVERS = {
    "rk4, 36 evaluations, guidance 0.5": SolverConfig(),
    "rk4, 36 evaluations, no guidance": SolverConfig(guidance=0.0),
    "euler, 9 evaluations, guidance 0.5": SolverConfig("euler", 10),
    "euler, 9 evaluations, no guidance": SolverConfig("euler", 10, guidance=0.0),
    "euler, 4 evaluations, guidance 0.5": SolverConfig("euler", 5),
    "euler, 4 evaluations, no guidance": SolverConfig("euler", 5, guidance=0.0),
}
# The published depth and reach, at a width one core carries.
SMALL = Token2WavConfig(
    DitConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        emb_dim=32,
        num_embeds=256,
        mel_dim=16,
        enc_emb_dim=12,
        enc_dim=8,
        enc_channels=(16, 16, 16, 16, 48),
        enc_attention_channels=8,
        enc_se_channels=8,
    ),
    VocoderConfig(mel_dim=16, upsample_initial_channel=64),
)
SEED = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A decoder's sizes and weights, and what it is asked to say."""

    config: Token2WavConfig
    weights: dict[str, Tensor]
    voice: Voice
    codes: Tensor

    def decoder(self, solver: SolverConfig, schedule: WindowSchedule) -> CodecDecoder:
        with torch.device("meta"):
            decoder = CodecDecoder(self.config, solver, schedule)
        weights = {k: v.clone() for k, v in self.weights.items()}
        decoder.load_state_dict(weights, assign=True)
        decoder.requires_grad_(False).prepare()
        return decoder


def random_subject(scale: float, num_codes: int) -> Subject:
    torch.manual_seed(0)
    decoder = CodecDecoder(SMALL)
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if "codec_embed" in name:
                p.normal_()
            elif "alpha" in name or "beta" in name:
                p.normal_(0, 0.1)
            else:
                p.normal_(0, scale / math.sqrt(p[0].numel()) if p.dim() > 1 else 0.05)
    voice = Voice("random", 0, torch.randn(12), torch.randn(120, 16))
    codes = torch.randint(0, 256, (1, num_codes))
    return Subject(SMALL, decoder.state_dict(), voice, codes)


def checkpoint_subject(folder: Path, num_codes: int) -> Subject:
    """A real codec decoder; its codes are random unless `codes.json` in the folder lists some."""
    config = OmniConfig.from_file(folder / "config.json").token2wav
    if config is None:
        raise SystemExit(f"{folder} has no codec decoder")
    prefix = "token2wav."
    weights = {
        k[len(prefix) :]: v.float()
        for shard in sorted(folder.glob("*.safetensors"))
        if shard.name != "voices.safetensors"
        for k, v in load_file(shard).items()
        if k.startswith(prefix)
    }
    own = folder / "voices.safetensors"
    voices = load_voices(own if own.exists() else folder / "spk_dict.pt", config.dit)
    torch.manual_seed(0)
    codes = torch.randint(0, config.dit.num_embeds, (1, num_codes))
    if (folder / "codes.json").exists():
        codes = torch.tensor(json.loads((folder / "codes.json").read_text()))[None, :num_codes]
    return Subject(config, weights, next(iter(voices.values())), codes)


def streamed_mel(
    sampler: FlowSampler, codes: Tensor, noise: Tensor, condition: Tensor, new: int, ahead: int
) -> Tensor:
    """C(new, ahead): windows of `new` blocks that see `ahead` more."""
    config, state = sampler.dit.config, sampler.init_state(1)
    block, rate, total = config.block_codes, config.repeats, codes.shape[1]
    pieces, start = [], 0
    while start < total:
        done, stop = start + new * block, start + (new + ahead) * block
        is_last = stop > total
        stop, done = (total, total) if is_last else (stop, done)
        mel = sampler.solve_window(
            codes[:, start:stop],
            noise[:, start * rate : stop * rate],
            condition,
            state,
            [0],
            None if is_last else new,
        )
        pieces.append(mel[:, : (done - start) * rate])
        start = done
    return torch.cat(pieces, dim=1)


def snr_db(signal: Tensor, other: Tensor) -> float:
    error = (signal - other).square().mean()
    return float("inf") if not error else float(10 * torch.log10(signal.var() / error))


def print_mel_distance(name: str, subject: Subject) -> None:
    """Per solver, look-ahead and window: max / rms, relative to the spread of the mel."""
    print(f"\nmel, {name}: max / rms error of C(new, look-ahead), relative to the mel's spread\n")
    print("| solver | new | f = 0 | f = 1 | f = 2 | f = 3 |\n|---|---|---|---|---|---|")
    num_frames = subject.codes.shape[1] * subject.config.dit.repeats
    noise = NoiseSource(SEED, subject.config.dit.mel_dim).frames(0, num_frames)[None]
    for label, solver in SOLVERS.items():
        sampler = subject.decoder(solver, WindowSchedule()).sampler
        condition = sampler.condition(subject.voice)[None]
        whole = sampler.sample(subject.codes, noise, condition)
        for new in (1, 2, 3):
            cells = []
            for ahead in range(4):
                mel = streamed_mel(sampler, subject.codes, noise, condition, new, ahead)
                error = (mel - whole) / whole.std()
                cells.append(f"{error.abs().max():.0e} / {error.square().mean().sqrt():.0e}")
            print(f"| {label} | {new} | {' | '.join(cells)} |", flush=True)


def print_pcm_distance(name: str, subject: Subject) -> None:
    """Per solver, look-ahead and vocoder margin: SNR of streamed against whole-clip sound."""
    print(f"\nPCM, {name}: SNR in dB against the whole clip, windows of 1, 2, 3, 3 … new blocks\n")
    print("| solver | margin | f = 0 | f = 1 | f = 2 | f = 3 |\n|---|---|---|---|---|---|")
    for label, solver in SOLVERS.items():
        for borrow in (False, True):
            cells = []
            for ahead in range(4):
                schedule = WindowSchedule((1, 2), 3, ahead, borrow_right=borrow)
                decoder = subject.decoder(solver, schedule)
                condition = decoder.condition(subject.voice)[None]
                whole = decoder.decode_whole_clip(subject.codes, condition, [SEED])
                cells.append(f"{snr_db(whole, decoder(subject.codes, condition, [SEED])):.0f}")
            margin = "borrowed" if borrow else "final"
            print(f"| {label} | {margin} | {' | '.join(cells)} |", flush=True)


def print_precision_distance(name: str, subject: Subject) -> None:
    """What bf16 weights in the flow cost, whole clip."""
    print(f"\nbf16 flow, {name}: rms error relative to the mel's spread\n")
    print("| solver | rms |\n|---|---|")
    num_frames = subject.codes.shape[1] * subject.config.dit.repeats
    noise = NoiseSource(SEED, subject.config.dit.mel_dim).frames(0, num_frames)[None]
    for label, solver in SOLVERS.items():
        mels = []
        for dtype in (torch.float32, torch.bfloat16):
            decoder = subject.decoder(solver, WindowSchedule())
            dit = decoder.code2wav_dit_model.to(dtype)
            sampler = FlowSampler(dit, solver)
            condition = sampler.condition(subject.voice)[None]
            mels.append(sampler.sample(subject.codes, noise, condition))
        error = (mels[1] - mels[0]).square().mean().sqrt() / mels[0].std()
        print(f"| {label} | {error:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]  # has one
    parser.add_argument("--codes", type=int, default=144, help="length of the clip in codec tokens")
    parser.add_argument("--checkpoint", type=Path, help="measure this folder instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.checkpoint:
        subjects = {
            arguments.checkpoint.name: checkpoint_subject(arguments.checkpoint, arguments.codes)
        }
    else:
        subjects = {
            f"random weights at scale {s}": random_subject(s, arguments.codes) for s in (0.5, 1.0)
        }
    with torch.inference_mode():
        for name, subject in subjects.items():
            print_mel_distance(name, subject)
            print_pcm_distance(name, subject)
            print_precision_distance(name, subject)


if __name__ == "__main__":
    main()
