"""Record conversations for people to judge: spoken questions of voices that nothing was trained on, and the replies.

    python -m recipes.tiny.samples --checkpoint ~/.cache/parley/omni-tiny --to docs/samples

Writes `NN-question.ogg`, `NN-reply.ogg` (Opus), what the camera saw (`NN-camera.png`), the replies' spectrograms
(`replies.png`) and a table with what was asked, what was answered, and what a recogniser hears in the answer. Nothing
is chosen afterwards: these are the questions, and each is asked once.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from PIL import Image

from model.chat import Chat
from model.omni import load
from model.reply import ReplyOptions
from recipes.tiny.callers import INPUT_RATE, kept_out_voices
from recipes.tiny.dataset import to_wave
from recipes.tiny.evaluate import said, show
from recipes.tiny.listen import Listener
from recipes.tiny.mel import SAMPLE_RATE
from recipes.tiny.plots import plot_mels
from recipes.tiny.scenes import Thing, picture
from recipes.tiny.speech import level, trim

QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What color is the sky?",
    "Hello, my name is Anna.",
    "What is 3 plus 4?",
    "What comes after Monday?",
    "What is a library?",
    "Who are you?",
    "Tell me a joke.",
    "Is grass red?",
)
# What is before the camera while somebody asks.
SHOWN = (
    ("What color is the star?", "white", (Thing("star", "red", 1, 1),)),
    ("What do you see?", "gray", (Thing("circle", "blue", 0, 1), Thing("square", "yellow", 2, 1))),
    ("Where is the green triangle?", "yellow", (Thing("triangle", "green", 2, 0),)),
)
HEAD = """# Thirteen conversations

Spoken questions by three synthetic voices that nothing was trained on, and what the embedded checkpoint answers; in
three of them a camera looks at something drawn in ways that nothing was trained on. Made by
`python -m recipes.tiny.samples`; each question was asked once and nothing was chosen afterwards.

| | Asked | Voice | Answered | A recogniser (Whisper tiny.en) hears |
|---|---|---|---|---|
"""
TAIL = """
The replies as mel spectrograms, 80 bands up to 12 kHz:

![spectrograms](replies.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path("docs/samples"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.to.mkdir(parents=True, exist_ok=True)
    omni, listener, voices = load(args.checkpoint), Listener(), kept_out_voices()
    lines, sounds = [], []
    asked_about = [(question, None) for question in QUESTIONS] + [
        (question, picture(i, list(things), background))
        for i, (question, background, things) in enumerate(SHOWN)
    ]
    for i, (question, frame) in enumerate(asked_about):
        caller = list(voices)[i % len(voices)]
        asked = level(trim(voices[caller][1](question, random.Random(i))))
        pcm = (32767 * asked).astype(np.int16)
        with torch.inference_mode():
            chat = Chat(omni, capacity=2048)
            if frame is None:
                chat.audio(to_wave(pcm), is_last=True)
            else:
                show(chat, 2 * -(-len(pcm) // INPUT_RATE) * [frame], to_wave(pcm))
            voice = list(omni.voices)[i % len(omni.voices)]
            text, sound = said(chat, ReplyOptions(voice=voice, max_text_tokens=60, max_codes=400))
        stem = f"{i + 1:02d}"
        write(args.to / f"{stem}-question.ogg", asked, INPUT_RATE)
        write(args.to / f"{stem}-reply.ogg", sound, SAMPLE_RATE)
        heard = listener.transcribe(sound) if len(sound) else ""
        sounds.append((f"{stem} {voice}: {text}", sound))
        links = f"[question]({stem}-question.ogg) [reply]({stem}-reply.ogg)"
        if frame is not None:
            Image.fromarray(frame).save(args.to / f"{stem}-camera.png")
            links = f"![what the camera sees]({stem}-camera.png) {links}"
        lines.append(f"| {links} | {question} | {caller} | {voice}: {text} | {heard} |\n")
        print(lines[-1], end="", flush=True)
    plot_mels(sounds, args.to / "replies.png")
    (args.to / "README.md").write_text(HEAD + "".join(lines) + TAIL)


def write(path: Path, wave: np.ndarray[tuple[int], np.dtype[np.float32]], rate: int) -> None:
    soundfile.write(path, soxr.resample(wave, rate, 24_000), 24_000, format="OGG", subtype="OPUS")


if __name__ == "__main__":
    main()
