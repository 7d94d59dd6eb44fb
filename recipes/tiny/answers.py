"""What a person would be told: wanted answers to questions of every kind, about what is shown too, as further texts.

    python -m recipes.tiny.answers --count 800 >> texts.txt
    python -m recipes.tiny.speech --voice joe --texts texts.txt

With `--mix replies.txt` lines of that file come in between, so that any beginning of the list has both.
"""

from __future__ import annotations

import argparse
import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.tiny.exchanges import exchange
from recipes.tiny.scenes import scene

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ABOUT_SCENES = 0.25
OTHERS = 0.4  # lines that come in between, while there are some


def answers(seed: int) -> Iterator[str]:
    """Endless answers, each once."""
    rng, seen, index = random.Random(f"answers/{seed}"), set[str](), 0
    while True:
        index += 1
        if rng.random() < ABOUT_SCENES:
            text = rng.choice(scene(seed, index).questions).reply
        else:
            text = exchange(seed, index, polite=True).reply
        if text not in seen:
            seen.add(text)
            yield text


def mixed(own: Iterable[str], others: list[str], seed: int) -> Iterator[str]:
    """Both lists in their order; no line twice."""
    rng, rest, seen = random.Random(f"mixed/{seed}"), iter(others), set(others)
    for text in own:
        while rng.random() < OTHERS:
            yield from islice(rest, 1)
        if text not in seen:
            yield text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=800, help="lines in all")
    parser.add_argument("--seed", type=int, default=60)
    parser.add_argument("--mix", type=Path, help="a file of other texts, one a line")
    args = parser.parse_args()
    others = list(dict.fromkeys(args.mix.read_text().splitlines())) if args.mix else []
    for text in islice(mixed(answers(args.seed), others, args.seed), args.count):
        print(text)


if __name__ == "__main__":
    main()
