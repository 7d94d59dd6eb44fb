"""`python -m model question.wav --model CHECKPOINT`: one spoken question in, text, codec tokens and a WAV out.

Runs the streaming path in one process: the question is fed as a microphone would, the reply is written as it is made.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from torch import Tensor

from model.chat import Chat
from model.mel import SAMPLE_RATE
from model.omni import Omni, load
from model.reply import AudioDelta, CodeDelta, ReplyDelta, ReplyOptions, TextDelta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.checkpoint import LoadProgress

OUTPUT_RATE = 24_000
PIECE_SECONDS = 0.1
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> int:
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    try:
        samples = read_sound(args.question)
        omni = _load(args)
        with torch.inference_mode():
            _converse(omni, samples, args)
    except ValueError as error:  # every error a user can cause derives from it
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_sound(path: Path) -> Tensor:
    """A sound file as float32 mono samples at 16 kHz.

    Raises:
        ValueError: it is missing or not a sound file.
    """
    try:
        pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{path} cannot be read as sound: {error}") from None
    mono = soxr.resample(pcm.mean(axis=1), rate, SAMPLE_RATE)
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("question", type=Path, help="sound file with the question")
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--text", default="", help="text to add after the question")
    parser.add_argument("--system", help="system prompt; default: the checkpoint's own")
    parser.add_argument("--out", type=Path, default=Path("reply.wav"), help="WAV to write")
    parser.add_argument("--voice", help="default: the checkpoint's first")
    parser.add_argument(
        "--temperature",
        type=float,
        help="of the text; 0 is greedy; default: as the checkpoint says",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 where the device has it")
    parser.add_argument("--weights", choices=("plain", "int8"), default="plain")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU")
    parser.add_argument("--max-codes", type=int, default=4096)
    return parser


def _load(args: argparse.Namespace) -> Omni:
    columns = TextColumn("loading"), BarColumn(), DownloadColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("")

        def show(progress: LoadProgress) -> None:
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)

        dtype = DTYPES.get(args.dtype)
        return load(
            args.model, device=args.device, dtype=dtype, weights=args.weights, progress=show
        )


def _converse(omni: Omni, samples: Tensor, args: argparse.Namespace) -> None:
    chat = Chat(omni, args.system)
    for piece in torch.split(samples, int(PIECE_SECONDS * SAMPLE_RATE)):
        chat.audio(piece, is_last=False)
    committed = time.perf_counter()
    chat.audio(torch.empty(0), is_last=True)
    if args.text:
        chat.text(args.text)
    own = omni.generation.thinker
    temperature = own.temperature if args.temperature is None else args.temperature
    thinker = replace(own, temperature=temperature, seed=args.seed)
    options = ReplyOptions(
        voice=args.voice,
        thinker=thinker,
        talker=replace(omni.generation.talker, seed=args.seed),
        max_codes=args.max_codes,
        noise_seed=args.seed,
    )
    codes, first_ms, num_samples = _play(chat.reply(options), args.out, committed)
    seconds = num_samples / OUTPUT_RATE
    spent = time.perf_counter() - committed
    print(f"\ncodes: {codes}")
    print(f"{seconds:.2f} s of speech in {args.out}, {seconds / spent:.2f} s per second")
    print(
        "after the end of the question: "
        + ", ".join(f"first {k} {v:.0f} ms" for k, v in first_ms.items())
    )


def _play(
    deltas: Iterator[ReplyDelta], out: Path, committed: float
) -> tuple[list[int], dict[str, float], int]:
    """Print text and write sound as they come; codes, milliseconds to the first of each kind, samples."""
    codes: list[int] = []
    first_ms: dict[str, float] = {}
    num_samples = 0
    with soundfile.SoundFile(out, "w", OUTPUT_RATE, 1, "PCM_16") as wav:
        for delta in deltas:
            now_ms = 1000 * (time.perf_counter() - committed)
            match delta:
                case TextDelta():
                    first_ms.setdefault("text", now_ms)
                    print(delta.text, end="", flush=True)
                case CodeDelta():
                    codes.append(delta.code)
                case AudioDelta():
                    first_ms.setdefault("sound", now_ms)
                    wav.write(delta.pcm.cpu().numpy())
                    num_samples += len(delta.pcm)
    return codes, first_ms, num_samples


if __name__ == "__main__":
    sys.exit(main())
