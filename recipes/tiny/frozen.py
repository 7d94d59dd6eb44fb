"""The assembled Thinker as trainings use it: plain modules with gradients through them, weights that stay put.

The server's own loader lays weights out for inference kernels, which have no backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from model.config import OmniConfig
from model.omni import default_dtype, image_settings
from model.thinker import Thinker
from model.tokenizer import TextTokenizer
from recipes.tiny.turns import asked, closing, opening

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FrozenThinker:
    """The Thinker of a checkpoint folder, with its tokenizer and the whole configuration."""

    thinker: Thinker
    tokenizer: TextTokenizer
    config: OmniConfig
    device: str
    dtype: torch.dtype

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype | None = None) -> FrozenThinker:
        """Read an assembled folder; in what the device multiplies fastest unless told."""
        dtype = dtype or default_dtype(torch.device(device))
        config = OmniConfig.from_file(folder / "config.json")
        with torch.device("meta"):
            thinker = Thinker(config.thinker, image_settings(folder)).to(dtype)
        tensors = load_file(folder / "model.safetensors")
        weights = {
            k.removeprefix("thinker."): v for k, v in tensors.items() if k.startswith("thinker.")
        }
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        thinker.to_empty(device=device).load_state_dict(weights)
        thinker.requires_grad_(False).eval().prepare()
        return cls(thinker, TextTokenizer.from_folder(folder), config, device, dtype)

    def embed(self, token_ids: list[int]) -> Tensor:
        """Token ids to rows [N, H]."""
        return self.thinker.embed(torch.tensor(token_ids, device=self.device))

    def hidden(self, rows: Tensor) -> Tensor:
        """Rows of text-only sequences [B, T, H], padded at the end, to hidden states after the final norm [B, T, H]."""
        positions = torch.arange(rows.shape[1], device=rows.device).expand(3, len(rows), -1)
        return self.thinker.model.whole(rows, positions)

    def sound(self, clip: Tensor) -> Tensor:
        """Rows of sound [n, H] between their markers."""
        config = self.thinker.config
        before, after = (
            self.embed([token])
            for token in (config.audio_start_token_id, config.audio_end_token_id)
        )
        return torch.cat([before, clip.to(self.dtype), after])

    def turn(self, said: Tensor, reply: list[int]) -> Tensor:
        """A turn of rows [n, H], and its reply: rows [T, H]."""
        tokens = [*closing(self.tokenizer), *reply]
        return torch.cat([self.embed(opening(self.tokenizer)), said, self.embed(tokens)])

    def reply_logits(self, sequences: list[Tensor], counts: list[int]) -> Tensor:
        """Logits at the last `counts` rows of each sequence [T, H], one below the other."""
        hidden = self.hidden(pad_sequence(sequences, batch_first=True))
        last = [h[len(s) - n : len(s)] for h, s, n in zip(hidden, sequences, counts, strict=True)]
        return self.thinker.logits(torch.cat(last))

    def said_loss(self, hidden: Tensor, said: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of what is to be said: hidden states [B, T, H], tokens [t] of each sequence (-1: not asked)."""
        pairs = [(h[: len(own) - 1], own[1:]) for h, own in zip(hidden, said, strict=True)]
        before = torch.cat([h[tokens >= 0] for h, tokens in pairs])
        wanted = torch.cat([tokens[tokens >= 0] for _, tokens in pairs])
        return F.cross_entropy(self.thinker.logits(before).float(), wanted)

    def chat(self, system: str, question: str) -> list[int]:
        """The frame of a chat up to the reply, as the running model writes it."""
        return asked(self.tokenizer, question, system)
