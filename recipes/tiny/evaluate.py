"""Measure the parts on kept-out speech, with a recogniser as judge.

    python -m recipes.tiny.evaluate speech   --clips 100       # the recogniser on the original: the floor
    python -m recipes.tiny.evaluate vocoder  --run ~/.cache/parley/tiny/vocoder
    python -m recipes.tiny.evaluate codec    --run ~/.cache/parley/tiny/codec --vocoder ~/.cache/parley/tiny/vocoder
    python -m recipes.tiny.evaluate dit      --run ~/.cache/parley/tiny/dit --codec … --vocoder …

Two figures: word errors against the text, and against what the recogniser heard in the original recording.
The second takes the recogniser's own errors out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.tiny import codec, dit, vocoder
from recipes.tiny.dataset import VOICE_NAMES, Clip, Speech
from recipes.tiny.listen import Listener, word_errors
from recipes.tiny.mel import SAMPLE_RATE

Resynthesis = Callable[[Clip], NDArray[np.float32]]


def original(clip: Clip) -> NDArray[np.float32]:
    return np.asarray(clip.wave())


def through_vocoder(run: Path, best: bool) -> Resynthesis:
    voc = vocoder.load(run, best=best)
    return lambda clip: np.asarray(voc(clip.mel()[None])[0])


def through_codec(run: Path, vocoder_run: Path, best: bool) -> Resynthesis:
    tokenizer, voc = codec.load(run, best=best), vocoder.load(vocoder_run, best=best)

    def resynthesise(clip: Clip) -> NDArray[np.float32]:
        mel, _ = codec.padded_mel([clip])
        values, _ = tokenizer.encode(mel)
        made: Tensor = tokenizer.decode(values, torch.tensor([clip.voice]))
        return np.asarray(voc(made)[0])

    return resynthesise


def through_dit(
    run: Path, codec_run: Path, vocoder_run: Path, speech: Speech, best: bool
) -> Resynthesis:
    """Codes of the clip, back through the flow and the vocoder: all of the codec but its streaming windows."""
    flow, tokenizer, voc = (
        dit.load(run, best=best),
        codec.load(codec_run),
        vocoder.load(vocoder_run),
    )
    voices = dit.make_voices(speech)

    def resynthesise(clip: Clip) -> NDArray[np.float32]:
        (coded,) = dit.code_clips(tokenizer, [clip], "cpu")
        noise = torch.randn(coded.mel.shape, generator=torch.Generator().manual_seed(0))
        voice = voices[clip.voice]
        made = dit.sample(
            flow, noise[None], coded.codes[None], voice.cond[None], voice.ref_mel[None]
        )
        return np.asarray(voc(made)[0])

    return resynthesise


def measure(
    clips: list[Clip], make: Resynthesis, listener: Listener, keep: Path | None
) -> dict[str, float]:
    """Return word error rates over `clips`; write what was made to `keep`."""
    said_heard, origin_heard = [], []
    for i, clip in enumerate(clips):
        wave = make(clip)
        heard = listener.transcribe(wave)
        said_heard.append((clip.text, heard))
        origin_heard.append((listener.transcribe(original(clip)), heard))
        if keep:
            soundfile.write(keep / f"{i:03d}.wav", wave, SAMPLE_RATE)
            with (keep / "heard.jsonl").open("a") as file:
                file.write(json.dumps({"said": clip.text, "heard": heard}) + "\n")
    return {
        "against_text": word_errors(said_heard).rate,
        "against_original": word_errors(origin_heard).rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("speech", "vocoder", "codec", "dit"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--vocoder", type=Path)
    parser.add_argument("--codec", type=Path)
    parser.add_argument(
        "--data", type=Path, default=Path("~/.cache/parley/tiny/speech").expanduser()
    )
    parser.add_argument("--clips", type=int, default=50, help="per voice")
    parser.add_argument(
        "--newest", action="store_true", help="newest averaged weights, not the best"
    )
    parser.add_argument("--keep", type=Path, help="folder for the sound made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    speech, listener, best = Speech(args.data), Listener(), not args.newest
    makers: dict[str, Callable[[], Resynthesis]] = {
        "speech": lambda: original,
        "vocoder": lambda: through_vocoder(args.run, best),
        "codec": lambda: through_codec(args.run, args.vocoder, best),
        "dit": lambda: through_dit(args.run, args.codec, args.vocoder, speech, best),
    }
    make = makers[args.what]()
    for voice, name in enumerate(VOICE_NAMES):
        clips = [clip for clip in speech.kept_out if clip.voice == voice][: args.clips]
        with torch.inference_mode():
            rates = measure(clips, make, listener, args.keep)
        print(json.dumps({"what": args.what, "voice": name, "clips": len(clips), **rates}))


if __name__ == "__main__":
    main()
