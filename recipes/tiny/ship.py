"""Collect the best weights of the runs into `model/tiny/`: what the repository carries of the checkpoint.

    python -m recipes.tiny.ship vocoder dit voices --runs ~/.cache/parley/tiny

How they are stored: `storage.py`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from model.codec.voice import save_voices
from recipes.tiny import dit, loop, storage
from recipes.tiny.assemble import TRAINED
from recipes.tiny.dataset import Speech

# File: the run and the part of it that it holds, and the published prefix.
SHIPPED = {
    "vocoder": ("vocoder", "vocoder", "token2wav.code2wav_bigvgan_model."),
    "dit": ("dit", "dit", "token2wav.code2wav_dit_model."),
    "talker": ("talker", "talker", "talker."),
    "manners": ("manners", "manners", "thinker.manners."),
    "hearing": ("hearing", "audio", "thinker.audio_tower."),
    "listening": ("hearing", "listening", "thinker.listening."),
    "seeing": ("seeing", "visual", "thinker.visual."),
    "looking": ("seeing", "looking", "thinker.looking."),
    "codec": ("codec", "tokenizer", "tokenizer."),
}
# The codec's encoder never runs in the product, but DiT and Talker can only be trained further on its codes.
KEPT_WITH_RECIPES = ("codec",)

log = logging.getLogger("ship")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=(*SHIPPED, "voices"))
    parser.add_argument("--runs", type=Path, default=Path("~/.cache/parley/tiny").expanduser())
    parser.add_argument("--to", type=Path, default=TRAINED)
    parser.add_argument(
        "--newest", action="store_true", help="newest averaged weights, not the best"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.to.mkdir(parents=True, exist_ok=True)
    for what in args.what:
        if what == "voices":
            voices = dit.make_voices(Speech(args.runs / "speech"))
            # The first is the default voice: Chelsie, as in the published checkpoints.
            save_voices(
                args.to / "voices.safetensors", sorted(voices, key=lambda voice: voice.name)
            )
            continue
        run, part, prefix = SHIPPED[what]
        weights = loop.load_average(args.runs / run, part, best=not args.newest)
        folder = Path(__file__).parent if what in KEPT_WITH_RECIPES else args.to
        path = folder / f"{what}.safetensors"
        storage.write({prefix + name: value for name, value in weights.items()}, path)
        log.info("%s: %d tensors, %.1f MB", what, len(weights), 1e-6 * path.stat().st_size)


if __name__ == "__main__":
    main()
