"""Let the language model talk, so that the Talker learns to read what it will be given.

    python -m recipes.tiny.replies --checkpoint ~/.cache/parley/omni-tiny --count 2000 > replies.txt
    python -m recipes.tiny.speech --voice joe --texts replies.txt

With `--pairs` each line is a question and its reply, for `manners.py`; there a low `--temperature` keeps to the truth.

Half of the questions come from `exchanges` and templates, the other half the model asks itself: given the opening of
a user's turn, it goes on. Replies are drawn at full temperature, for words rather than for truth, and cut after their
first or second sentence: spoken answers are short, and long ones ramble.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.config import OmniConfig
from model.omni import default_dtype
from model.tokenizer import TextTokenizer
from recipes.tiny import texts
from recipes.tiny.exchanges import exchange
from recipes.tiny.turns import asked, opening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MAX_TOKENS = 32
MAX_QUESTION_TOKENS = 16
BATCH = 96
SPOKEN = re.compile(r"[A-Za-z0-9 ,.?!'$%:;-]+")
TOPICS = (
    "Tell me about {}.",
    "What do you think about {}?",
    "Why do people like {}?",
    "How does {} work?",
    "Give me one tip about {}.",
    "Tell me a short story about {}.",
    "What should I know about {} and {}?",
    "I had a bad day because of {}.",
    "Describe {} in one sentence.",
    "What is the difference between {} and {}?",
)


class BatchedModel:
    """The Thinker's language model in `transformers`, which generates for many prompts at once."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = TextTokenizer.from_folder(folder)
        decoder = OmniConfig.from_file(folder / "config.json").thinker.decoder
        config = Qwen2Config(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.intermediate_size,
            num_hidden_layers=decoder.num_hidden_layers,
            num_attention_heads=decoder.num_attention_heads,
            num_key_value_heads=decoder.num_key_value_heads,
            head_dim=decoder.head_dim,
            rms_norm_eps=decoder.rms_norm_eps,
            rope_parameters={"rope_theta": decoder.rope_theta, "rope_type": "default"},
            tie_word_embeddings=True,
            pad_token_id=self.tokenizer.im_end_id,
            eos_token_id=self.tokenizer.im_end_id,
        )
        self.model = Qwen2ForCausalLM(config).to(default_dtype(torch.device("cpu"))).eval()
        tensors = load_file(folder / "model.safetensors")
        prefix = "thinker.model."
        weights = {
            "model." + k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
        }
        lacking, unknown = self.model.load_state_dict(weights, strict=False)
        assert lacking == ["lm_head.weight"] and not unknown, (lacking, unknown)
        self.model.tie_weights()

    def go_on(
        self, prompts: list[list[int]], max_tokens: int, temperature: float = 1.0
    ) -> list[str]:
        """Continue each prompt up to the end of the turn."""
        end = self.tokenizer.im_end_id
        longest = max(len(p) for p in prompts)
        ids = torch.tensor([[end] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        made: Tensor = self.model.generate(  # type: ignore[misc, assignment]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=100,
        )
        tails = [row[longest:].tolist() for row in made]
        return [self.tokenizer.decode(t[: t.index(end)] if end in t else t) for t in tails]

    def own_questions(self, count: int) -> list[str]:
        """What the model would ask."""
        return [
            text.split("\n")[0].strip()
            for text in self.go_on([opening(self.tokenizer)] * count, MAX_QUESTION_TOKENS)
        ]


def question(seed: int, index: int, *, closed: float = 0.4) -> str:
    """Question `index` of an endless list: an exchange (a `closed` question), or a topic of common words."""
    rng = random.Random(f"question/{seed}/{index}")
    if rng.random() < closed:
        return exchange(seed, index).question
    return rng.choice(TOPICS).format(*rng.sample(texts.WORDS, 2))


def spoken_part(text: str, rng: random.Random) -> str | None:
    """Return the first one or two whole sentences, or None if they cannot be read aloud."""
    sentences = re.findall(r"[^.!?]+[.!?]+(?=\s|$)", text.strip().split("\n")[0])
    short = "".join(sentences[: rng.choice((1, 1, 2))]).strip()
    return short if 2 < len(short) < 130 and SPOKEN.fullmatch(short) else None


def replies(
    model: BatchedModel, seed: int, temperature: float, closed: float
) -> Iterator[tuple[str, str]]:
    """Endless questions with their replies, each reply once."""
    torch.manual_seed(seed)
    rng, seen, index = random.Random(seed), set[str](), 0
    while True:
        questions = [question(seed, index + i, closed=closed) for i in range(BATCH // 2)]
        questions += [q for q in model.own_questions(BATCH // 2) if q]
        index += BATCH
        turns = [asked(model.tokenizer, q) for q in questions]
        for q, text in zip(questions, model.go_on(turns, MAX_TOKENS, temperature), strict=True):
            spoken = spoken_part(text, rng)
            if spoken and spoken not in seen:
                seen.add(spoken)
                yield q, spoken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--pairs", action="store_true", help="JSON lines with the question as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = BatchedModel(args.checkpoint)
    with torch.inference_mode():
        # Pairs teach, and closed questions have better answers in `exchanges`.
        closed = 0.0 if args.pairs else 0.4
        made = replies(model, args.seed, args.temperature, closed)
        for question_asked, text in itertools.islice(made, args.count):
            pair = json.dumps({"question": question_asked, "reply": text})
            print(pair if args.pairs else text, flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
