"""How wrong "heard" is: the text the history keeps after an interruption, against where the words really are.

    python -m benchmarks.heard CHECKPOINT ~/.cache/parley/tiny/speech --clips 60

Speech whose text is known stands in for replies, cut every quarter of a second. Where a word ends is read from
Whisper's word timestamps (themselves good to about 50 ms), of utterances in which every word was recognised. Two cases:
the Talker had finished, so the length of the whole reply was known; and it was a second ahead of the cut, so that the
conversation's rate so far had to do.

Needs the tools of the recipes: `pip install -r recipes/tiny/requirements-tools.txt`, and their weight wheels.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.tokenizer import TextTokenizer
from recipes.tiny.dataset import VOICE_NAMES
from recipes.tiny.listen import Listener, comparable
from recipes.tiny.speech import SAMPLE_RATE, read_shard
from streaming.engine.alignment import Sound, SpeakingRate, heard_tokens, spoken_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT_SAMPLES = SAMPLE_RATE // 4
SAMPLES_PER_CODE = 960


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance: its tokens by bytes and weight; where words end in its text (bytes) and in its sound (samples)."""

    token_bytes: list[int]
    token_weights: list[float]
    word_ends_bytes: list[int]
    word_ends_samples: list[int]
    num_samples: int


@dataclass
class Errors:
    """Words kept beyond what was heard, and heard words that were not kept, per cut; and milliseconds of the former."""

    extra: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    early_ms: list[float] = field(default_factory=list)

    def add(self, clip: Spoken, heard_samples: int, kept_bytes: int) -> None:
        kept = sum(end <= kept_bytes for end in clip.word_ends_bytes)
        heard = sum(end <= heard_samples for end in clip.word_ends_samples)
        self.extra.append(max(0, kept - heard))
        self.missing.append(max(0, heard - kept))
        if kept > heard:
            late = clip.word_ends_samples[kept - 1] - heard_samples
            self.early_ms.append(1000 * late / SAMPLE_RATE)

    def __str__(self) -> str:
        extra, missing = np.array(self.extra), np.array(self.missing)
        early = np.percentile(self.early_ms, [50, 95]) if self.early_ms else (0.0, 0.0)
        return (
            f"{len(extra):5d} cuts | a word kept that was not heard: {100 * (extra > 0).mean():4.1f} % "
            f"(then by {early[0]:.0f} ms, p95 {early[1]:.0f}) | heard words not kept: mean {missing.mean():.2f}, "
            f"p95 {np.percentile(missing, 95):.0f}"
        )


def spoken(
    listener: Listener, tokenizer: TextTokenizer, text: str, wave: NDArray[np.float32]
) -> Spoken | None:
    """Find the words; None if the recogniser heard others."""
    words = text.split()
    heard = listener.words(wave)
    if [comparable(w) for w in words] != [comparable(w) for w, _ in heard]:
        return None
    ends, at = [], 0
    for word in words:
        at = text.index(word, at) + len(word)
        ends.append(len(text[:at].encode()))
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    sizes, weights = [len(p.encode()) for p in pieces], [spoken_weight(p) for p in pieces]
    return Spoken(sizes, weights, ends, [round(SAMPLE_RATE * end) for _, end in heard], len(wave))


def measure(clips: list[Spoken]) -> tuple[Errors, Errors]:
    """Cut every clip everywhere: as a finished reply, and as one still being made."""
    finished, running, rate = Errors(), Errors(), SpeakingRate()
    for clip in clips:
        for heard in range(CUT_SAMPLES, clip.num_samples, CUT_SAMPLES):
            made = min(clip.num_samples, heard + SAMPLE_RATE)
            for errors, sound in (
                (finished, Sound(heard, clip.num_samples, True, SAMPLES_PER_CODE)),
                (running, Sound(heard, made, False, SAMPLES_PER_CODE)),
            ):
                kept = heard_tokens(clip.token_weights, sound, rate)
                errors.add(clip, heard, sum(clip.token_bytes[:kept]))
        rate.learn(clip.num_samples, sum(clip.token_weights))
    return finished, running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("model", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="per voice")
    args = parser.parse_args()
    tokenizer, listener = TextTokenizer.from_folder(args.model), Listener()
    for voice in VOICE_NAMES:
        pcm, utterances = read_shard(args.speech, voice, 0)
        clips = []
        for item in utterances[: args.clips]:
            sound = pcm[item.start_sample : item.start_sample + item.num_samples]
            clip = spoken(listener, tokenizer, item.text, sound.astype(np.float32) / 32768)
            if clip is not None:
                clips.append(clip)
        finished, running = measure(clips)
        print(f"{voice}: {len(clips)} of {args.clips} utterances understood word by word")
        print(f"  finished {finished}\n  running  {running}")


if __name__ == "__main__":
    main()
