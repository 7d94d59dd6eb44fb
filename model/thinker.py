"""The Thinker: rows of text, sound and pictures in; text tokens and reply rows out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from model.audio_encoder import AudioEncoder
from model.decoder import Decoder
from model.vision_encoder import VisionEncoder

if TYPE_CHECKING:
    from model.attention import ForwardBatch, KVCache
    from model.config import ThinkerConfig
    from model.image import ImageSettings


class Thinker(nn.Module):
    """Encoders, decoder and output layer. Attribute names are the published parameter names."""

    def __init__(self, config: ThinkerConfig, images: ImageSettings) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = AudioEncoder(config.audio)
        self.visual = VisionEncoder(config.vision, images)
        self.model = Decoder(config.decoder)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)

    def prepare(self) -> None:
        self.audio_tower.prepare()
        self.model.prepare()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [N] to rows [N, H]."""
        return self.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def forward(self, rows: Tensor, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Rows [N, H] to hidden states after the final norm [N, H]; extends `kv`."""
        return self.model(rows, batch, kv)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, H] to float32 logits [B, V]; call it on the rows to sample from, not on a whole prompt."""
        return self.lm_head(hidden).float()  # type: ignore[no-any-return]


def talker_rows(hidden: Tensor, embedded: Tensor, is_placeholder: Tensor | None = None) -> Tensor:
    """What the Talker is fed for Thinker positions: h + e [N, H], or h + 0 where an encoder's row stood.

    Only placeholders lose their embedding; the bos and eos markers around media keep theirs (reference 5.23).
    """
    if is_placeholder is None:
        return hidden + embedded
    return hidden + embedded.masked_fill(is_placeholder[:, None], 0)
