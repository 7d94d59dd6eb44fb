"""Run the frozen Thinker once over every text that is read aloud, and keep the rows the Talker will be fed.

A piece of the result is a file `<rows>/00012.pt`: text to prompt rows [P, H] and reply rows [n, H], float16. Texts that
have rows already are skipped, so that the command can be run again after new speech has been made.

    python -m recipes.tiny.rows --checkpoint ~/.cache/parley/omni-tiny
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from model.thinker import talker_rows
from recipes.tiny import recorded, tree
from recipes.tiny.frozen import FrozenThinker
from recipes.tiny.texts import sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

# The Talker must read aloud under any prompt, so it is trained under several, and under none.
SYSTEM_PROMPTS = (
    tree.SYSTEM_PROMPT,
    "You are a helpful assistant. Answer in one or two short sentences.",
    "Talk like a friend.",
    "",
)
MAX_PROMPT_ROWS = 40
TEXTS_PER_PIECE = 500
BATCH = 16

log = logging.getLogger("rows")


def spoken_texts(speech: Path) -> list[str]:
    """Every text that was recorded or is in a finished shard, each once."""
    lines = (line for path in sorted(speech.glob("*.jsonl")) for line in path.open())
    texts = [x.text for x in recorded.read()] + [json.loads(line)["text"] for line in lines]
    return list(dict.fromkeys(texts))


def read_rows(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """All pieces: text to (prompt rows, reply rows)."""
    rows: dict[str, tuple[Tensor, Tensor]] = {}
    for path in sorted(folder.glob("?????.pt")):
        rows |= torch.load(path)
    return rows


@torch.inference_mode()
def make_rows(
    source: FrozenThinker, texts: list[str], seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Give every text a chat in which it is the reply; long prompts lose their beginning, as the Talker is local."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in _batches(sorted(texts, key=len)):
        prompts, replies = [], []
        for text in batch:
            rng = np.random.default_rng((seed, *text.encode()))
            system = SYSTEM_PROMPTS[int(rng.integers(len(SYSTEM_PROMPTS)))]
            prompts.append(source.chat(system, sentence(seed, int(rng.integers(1 << 30)))))
            replies.append(source.tokenizer.encode(text))
        embedded = [source.embed(p + r) for p, r in zip(prompts, replies, strict=True)]
        hidden = source.hidden(nn.utils.rnn.pad_sequence(embedded, batch_first=True))
        for text, prompt, h, e in zip(batch, prompts, hidden, embedded, strict=True):
            rows = talker_rows(h[: len(e)], e).half().cpu()
            start = max(0, len(prompt) - MAX_PROMPT_ROWS)
            made[text] = (rows[start : len(prompt)].clone(), rows[len(prompt) :].clone())
    return made


def _batches(texts: list[str]) -> Iterable[list[str]]:
    return (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cache = Path("~/.cache/parley/tiny").expanduser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=cache / "speech")
    parser.add_argument("--rows", type=Path, default=cache / "rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    args.rows.mkdir(parents=True, exist_ok=True)
    done = read_rows(args.rows)
    texts = [text for text in spoken_texts(args.data) if text not in done]
    source = FrozenThinker.load(args.checkpoint, args.device)
    first = len(list(args.rows.glob("?????.pt")))
    for i in range(0, len(texts), TEXTS_PER_PIECE):
        made = make_rows(source, texts[i : i + TEXTS_PER_PIECE], args.seed)
        path = args.rows / f"{first + i // TEXTS_PER_PIECE:05d}.pt"
        torch.save(made, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
        log.info("rows %d of %d", min(i + TEXTS_PER_PIECE, len(texts)), len(texts))


if __name__ == "__main__":
    main()
