"""How each token sounds, for the Talker to read: phonemes of all 49 152 tokens, shipped as one small table.

The Talker knows the words of its reply by the Thinker's embeddings, and those of a language model hardly tell how a
word sounds: from hours of speech a Talker learns the words it has heard, and no others. So the assembled Thinker is a
little wider than its source, and the width that is added spells each token's phonemes (`assemble.spelled`). No layer
reads or writes it; its text stays the source's.

A token sounds as it does most often in the 80 000 commonest words, whole or as a piece of them; one that is in none
of these sounds as if it were a word.

    python -m recipes.tiny.pronunciations --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from wordfreq import top_n_list, word_frequency

from model.tokenizer import TextTokenizer
from recipes.tiny import tree
from recipes.tiny.assemble import PRONUNCIATIONS, TRAINED
from recipes.tiny.phonemes import Phonemes, spelling, text_phonemes

if TYPE_CHECKING:
    from torch import Tensor

NUM_WORDS = 80_000
WORD, SPOKEN = re.compile(r"[a-z]+('[a-z]+)?"), re.compile(r"[^\W_]")


def table(tokenizer: TextTokenizer, words: list[str]) -> Tensor:
    """Phonemes of every token, 1-based, zeros behind them, uint8 [VOCABULARY, SLOTS]."""
    votes = piece_votes(tokenizer, words)
    rows = torch.zeros(tree.VOCABULARY, tree.SLOTS, dtype=torch.uint8)
    for token in range(max(tree.MARKERS.values()) + 1, tree.VOCABULARY):
        text = tokenizer.decode([token])
        if token in votes:
            phonemes = votes[token].most_common(1)[0][0]
        else:
            phonemes = text_phonemes(text.strip()) if SPOKEN.search(text) else ()
        own = phonemes[: tree.SLOTS]
        rows[token, : len(own)] = torch.tensor(own, dtype=torch.uint8)
    return rows


def piece_votes(tokenizer: TextTokenizer, words: list[str]) -> dict[int, Counter[Phonemes]]:
    """What each token sounds like in words, counted by the frequency of the words; silent letters do not count."""
    votes: dict[int, Counter[Phonemes]] = defaultdict(Counter)
    for word in words:
        # Twice: inside a sentence, and at its start.
        for written in (f" {word}", word.capitalize()):
            tokens = tokenizer.encode(written)
            weight = max(1, round(1e9 * word_frequency(word, "en")))
            for token, own in zip(tokens, spelling(tokenizer, tokens), strict=True):
                if own:
                    votes[token][own] += weight
    return votes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="for its tokenizer")
    parser.add_argument("--out", type=Path, default=TRAINED / "pronunciations.safetensors")
    args = parser.parse_args()
    tokenizer = TextTokenizer.from_folder(args.checkpoint)
    words = [word for word in top_n_list("en", NUM_WORDS) if WORD.fullmatch(word)]
    rows = table(tokenizer, words)
    save_file({PRONUNCIATIONS: rows}, args.out)
    print(f"tokens with a sound={int((rows > 0).any(1).sum())} of {len(rows)}")


if __name__ == "__main__":
    main()
