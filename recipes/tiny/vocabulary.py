"""The words that are single tokens to the Thinker, commonest first: what the Talker must be able to pronounce.

Byte-pair merges are made in the order of frequency, so a token's number is its rank.

    python -m recipes.tiny.vocabulary --checkpoint ~/.cache/parley/omni-tiny --count 600 >> texts.txt
    python -m recipes.tiny.speech --voice joe --texts texts.txt
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

from model.tokenizer import TextTokenizer
from recipes.tiny import tree

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = re.compile(r" (?:[A-Z]?[a-z]+|I|A)")
# Short letter groups are mostly pieces of words or abbreviations; these are the real short words.
SHORT = frozenset(
    "a I am an as at be by do go he hi if in is it me my no of oh ok on or so to up us we".split()
)


def words(tokenizer: TextTokenizer) -> list[tuple[int, str]]:
    """Token id and text (without its space) of every whole word, commonest first."""
    found = []
    for token in range(17, tree.VOCABULARY):
        text = tokenizer.decode([token])
        if WORD.fullmatch(text) and (len(text) > 3 or text[1:].lower() in SHORT):
            found.append((token, text[1:]))
    return found


def row_of_words(ranked: Sequence[tuple[int, str]], seed: int, index: int) -> str:
    """Some words in a row, common ones more often: half of the draws come from the first tenth."""
    rng = random.Random(f"vocabulary/{seed}/{index}")
    picked = [
        ranked[int(len(ranked) * rng.random() ** rng.choice((1, 3)))][1]
        for _ in range(rng.randint(6, 11))
    ]
    text = " ".join(picked)
    return text[0].upper() + text[1:] + "."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--top", type=int, default=12_000, help="words to draw from")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    ranked = words(TextTokenizer.from_folder(args.checkpoint))[: args.top]
    for index in range(args.count):
        print(row_of_words(ranked, args.seed, index))


if __name__ == "__main__":
    main()
