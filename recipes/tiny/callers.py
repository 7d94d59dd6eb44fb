"""Make the speech that the model learns to hear: many voices, speeds and levels, 16 kHz.

Fast formant and unit voices (50 to 200 times real time) give variety, good ones naturalness: Piper's one, and mixtures
of Kokoro's styles, as many as one likes, which are slow (1.5 times real time).
Shards are as in `speech.py`, `callers-00012.flac` with `callers-00012.jsonl`. Three voices are kept out of
training altogether and speak only the kept-out shards, whose wordings nobody trains on either. Beside the questions of
`exchanges.py` they ask about pictures, and call out "now" to somebody who is watching.

    python -m recipes.tiny.callers --shards 40
    python -m recipes.tiny.callers --shards 4 --kept-out
    python -m recipes.tiny.callers --shards 10 --about scenes
    python -m recipes.tiny.callers --shards 1 --about now
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from recipes.tiny.exchanges import Exchange, exchange
from recipes.tiny.scenes import scene
from recipes.tiny.speech import (
    SAMPLE_RATE,
    UTTERANCES_PER_SHARD,
    Audio,
    Kokoro,
    level,
    piper_joe,
    read_shard_files,
    trim,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

INPUT_RATE = 16_000
KEPT_OUT_SEED = 900

log = logging.getLogger("callers")


@dataclass(frozen=True, slots=True)
class Call:
    """One question as spoken, the reply that is wanted, and where its sound lies."""

    question: str
    reply: str
    key: str
    voice: str
    start_sample: int
    num_samples: int


def flite(name: str) -> Callable[[str, random.Random], Audio]:
    def speak(text: str, rng: random.Random) -> Audio:
        stretch = rng.uniform(0.85, 1.15)
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = ["flite", "-voice", name, "--setf", f"duration_stretch={stretch:.2f}"]
            subprocess.run([*command, "-t", text, "-o", file.name], check=True, capture_output=True)
            return _resampled(*soundfile.read(file.name, dtype="float32"))

    return speak


def espeak(language: str, variants: str) -> Callable[[str, random.Random], Audio]:
    def speak(text: str, rng: random.Random) -> Audio:
        voice = f"{language}+{rng.choice(variants.split())}"
        speed, pitch = rng.randint(130, 180), rng.randint(30, 65)
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
        made = subprocess.run(command, check=True, capture_output=True)
        return _resampled(*soundfile.read(io.BytesIO(made.stdout), dtype="float32"))

    return speak


def festival_hts(text: str, rng: random.Random) -> Audio:
    del rng  # this voice has no settings that sound natural
    spoken = text.replace("\\", "").replace('"', "")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        script = f'(voice_cmu_us_slt_arctic_hts)(utt.save.wave (utt.synth (Utterance Text "{spoken}")) "{file.name}")'
        subprocess.run(
            ["festival", "--pipe"], input=script, text=True, check=True, capture_output=True
        )
        return _resampled(*soundfile.read(file.name, dtype="float32"))


class Piper:
    """`joe` at the callers' rate, made once and kept."""

    def __init__(self) -> None:
        self._speak = piper_joe(0)

    def __call__(self, text: str, rng: random.Random) -> Audio:
        # A change of rate shifts pitch and speed together: from one voice, several.
        factor = rng.choice((0.9, 1.0, 1.0, 1.12))
        return _resampled(self._speak(text), int(SAMPLE_RATE * factor))


class Crowd:
    """A new natural voice for each question: a mixture of Kokoro's styles."""

    def __init__(self) -> None:
        self._kokoro = Kokoro()

    def __call__(self, text: str, rng: random.Random) -> Audio:
        styles = self._kokoro.styles.values()
        shares = [rng.gammavariate(0.5, 1) for _ in styles]  # mostly one or two of them
        style = sum(
            share / sum(shares) * style for share, style in zip(shares, styles, strict=True)
        )
        speed = rng.uniform(0.85, 1.2)
        return _resampled(self._kokoro(text, np.asarray(style), speed), SAMPLE_RATE)


def _resampled(wave: NDArray[np.float32], rate: int) -> Audio:
    return np.asarray(soxr.resample(wave, rate, INPUT_RATE), np.float32)


def train_voices() -> dict[str, tuple[float, Callable[[str, random.Random], Audio]]]:
    """Voices and how often each is heard."""
    return {
        "flite-slt": (0.2, flite("slt")),
        "flite-awb": (0.15, flite("awb")),
        "flite-kal16": (0.1, flite("kal16")),
        "piper-joe": (0.3, Piper()),
        "kokoro": (0.4, Crowd()),
        "espeak-us": (0.17, espeak("en-us", "m1 m2 m3 m4 m7 f1 f2 f3 f4")),
        "espeak-gb": (0.08, espeak("en-gb", "m1 m3 f2 f4")),
    }


def kept_out_voices() -> dict[str, tuple[float, Callable[[str, random.Random], Audio]]]:
    return {
        "flite-rms": (0.4, flite("rms")),
        "festival-hts": (0.4, festival_hts),
        "espeak-scotland": (0.2, espeak("en-gb-scotland", "m5 f5")),
    }


def about_scenes(seed: int, index: int) -> Exchange:
    return scene(seed, index).questions[0]


def calling_now(seed: int, index: int) -> Exchange:
    said = random.Random(f"now/{seed}/{index}").choice(("Now!", "Now.", "And now!"))
    return Exchange(said, "I am watching.")


# What is said, and the names of its shards for training and for evaluation.
ABOUT: dict[str, tuple[Callable[[int, int], Exchange], str, str]] = {
    "exchanges": (exchange, "callers", "kept-out"),
    "scenes": (about_scenes, "scenes", "kept-out-scenes"),
    "now": (calling_now, "now", "kept-out-now"),
}


def make_shard(
    folder: Path,
    name: str,
    seed: int,
    shard: int,
    voices: dict[str, tuple[float, Callable[[str, random.Random], Audio]]],
    say: Callable[[int, int], Exchange],
) -> float:
    """Speak one shard of exchanges; return seconds of speech. The index is written last."""
    pieces, lines, start = [], [], 0
    for i in range(shard * UTTERANCES_PER_SHARD, (shard + 1) * UTTERANCES_PER_SHARD):
        rng = random.Random(f"callers/{seed}/{i}")
        said = say(seed, i)
        voice = rng.choices(list(voices), [share for share, _ in voices.values()])[0]
        audio = level(trim(voices[voice][1](said.question, rng))) * rng.uniform(0.3, 1.0)
        call = Call(said.question, said.reply, said.key, voice, start, len(audio))
        lines.append(json.dumps(dataclasses.asdict(call)) + "\n")
        pieces.append(audio)
        start += len(audio)
    stem = folder / f"{name}-{shard:05d}"
    soundfile.write(stem.with_suffix(".flac"), np.concatenate(pieces), INPUT_RATE, subtype="PCM_16")
    stem.with_suffix(".part").write_text("".join(lines))
    stem.with_suffix(".part").rename(stem.with_suffix(".jsonl"))
    return start / INPUT_RATE


def read_calls(folder: Path, name: str) -> list[tuple[Call, NDArray[np.int16]]]:
    """Return every finished call of one kind of shards, such as `callers` or `kept-out`, with its samples."""
    calls = []
    for index in sorted(folder.glob(f"{name}-?????.jsonl")):
        pcm, lines = read_shard_files(index, INPUT_RATE)
        for line in lines:
            call = Call(**json.loads(line))
            calls.append((call, pcm[call.start_sample : call.start_sample + call.num_samples]))
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--kept-out", action="store_true", help="make the evaluation's shards")
    parser.add_argument("--about", choices=ABOUT, default="exchanges")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--data", type=Path, default=Path("~/.cache/parley/tiny/callers").expanduser()
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.data.mkdir(parents=True, exist_ok=True)
    say, trained_on, kept_out = ABOUT[args.about]
    name, seed = (kept_out, KEPT_OUT_SEED) if args.kept_out else (trained_on, args.seed)
    voices = kept_out_voices() if args.kept_out else train_voices()
    for shard in range(args.shards):
        if (args.data / f"{name}-{shard:05d}.jsonl").exists():
            continue
        began = time.monotonic()
        seconds = make_shard(args.data, name, seed, shard, voices, say)
        log.info(
            "shard %s-%05d seconds=%.0f speed=%.0fx",
            name,
            shard,
            seconds,
            seconds / (time.monotonic() - began),
        )


if __name__ == "__main__":
    main()
