"""Let the language model answer many questions, so that the Talker learns to read what it will be given.

    python -m recipes.tiny.replies --checkpoint ~/.cache/parley/omni-tiny --count 2000 > replies.txt
    python -m recipes.tiny.speech --voice joe --texts replies.txt

Replies are cut after their second sentence: spoken answers are short, and long ones ramble.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from model.chat import Chat
from model.omni import Omni
from model.omni import load as load_checkpoint
from model.reply import ReplyOptions, TextDelta
from recipes.tiny import tree
from recipes.tiny.exchanges import exchange

MAX_TOKENS = 60
SPOKEN = re.compile(r"[A-Za-z0-9 ,.?!'$%:;-]+")


def reply(omni: Omni, question: str) -> str:
    """Answer one typed question greedily."""
    chat = Chat(omni, tree.SYSTEM_PROMPT, capacity=512)
    chat.text(question)
    deltas = chat.reply(ReplyOptions(speech=False, max_text_tokens=MAX_TOKENS))
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def spoken_part(text: str) -> str | None:
    """Return the first two whole sentences on the first line, or None if they cannot be read aloud."""
    sentences = re.findall(r"[^.!?]+[.!?]+(?=\s|$)", text.strip().split("\n")[0])[:2]
    short = "".join(sentences).strip()
    return short if 2 < len(short) < 160 and SPOKEN.fullmatch(short) else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    omni = load_checkpoint(args.checkpoint, speech=False)
    seen: set[str] = set()
    with torch.inference_mode():
        for i in range(4 * args.count):
            text = spoken_part(reply(omni, exchange(args.seed, i).question))
            if text and text not in seen:
                seen.add(text)
                print(text, flush=True)
            if len(seen) == args.count:
                break
    sys.stdout.flush()


if __name__ == "__main__":
    main()
