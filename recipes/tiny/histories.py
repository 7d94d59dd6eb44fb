"""Spoken turns as the Talker is fed them, to stand before its lessons: in a conversation there is more than one prompt.

A Talker that was taught under forty rows of prompt at most is understood in the first spoken turns and babbles from
the fourth on: rows of sound, and distances it never met.

    python -m recipes.tiny.histories --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch
from torch import Tensor

from model.chat import Chat
from model.omni import Omni, load
from model.reply import ReplyOptions
from recipes.tiny.callers import INPUT_RATE
from recipes.tiny.dataset import SAMPLE_RATE, Speech

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.prefill import CachedSequence
    from recipes.tiny.dataset import Clip

TURNS = 6  # of each conversation
CAPACITY = 2048
FILE = "histories.pt"

log = logging.getLogger("histories")


class Overheard:
    """The Talker's cache, and a copy of every row that goes there."""

    def __init__(self, sequence: CachedSequence) -> None:
        self._sequence = sequence
        self.rows: list[Tensor] = []

    def extend(self, rows: Tensor, positions: Tensor) -> Tensor:
        self.rows.append(rows.half().clone())
        return self._sequence.extend(rows, positions)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sequence, name)


def turns(omni: Omni, clips: list[Clip]) -> Iterator[Tensor]:
    """Say each clip in one conversation; yield the rows [n, H] of each turn and its reply."""
    chat = Chat(omni, capacity=CAPACITY)
    heard = chat.prompt.talker = Overheard(chat.prompt.talker)  # type: ignore[assignment, arg-type]
    for clip in clips:
        wave = soxr.resample(np.asarray(clip.wave()), SAMPLE_RATE, INPUT_RATE)
        chat.audio(torch.from_numpy(wave), is_last=True)
        for _ in chat.reply(ReplyOptions(speech=False, max_text_tokens=24)):
            pass
        yield torch.cat(heard.rows)
        heard.rows.clear()


def read_histories(rows: Path) -> list[Tensor]:
    """The turns that were written beside the rows of texts; none if there are none."""
    path = rows / FILE
    made: list[Tensor] = torch.load(path) if path.exists() else []
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cache = Path("~/.cache/parley/tiny").expanduser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=cache / "speech")
    parser.add_argument("--to", type=Path, default=cache / "rows" / FILE)
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    omni, speech, rng = load(args.checkpoint), Speech(args.data), np.random.default_rng(args.seed)
    made: list[Tensor] = []
    with torch.inference_mode():
        for number in range(args.conversations):
            made += turns(omni, speech.pick(rng, TURNS))
            log.info("conversation %d of %d", number + 1, args.conversations)
            torch.save(made, args.to)


if __name__ == "__main__":
    main()
