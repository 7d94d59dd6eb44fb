"""The Talker: one Thinker row per step in, one codec token out, 50 (or 25) a second of speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.decoder import Decoder

if TYPE_CHECKING:
    from model.attention import ForwardBatch, KVCache
    from model.config import DitConfig, TalkerConfig


class Talker(nn.Module):
    """Projection, decoder and output layer. Attribute names are the published parameter names.

    Inputs live in the Thinker's space (`embedding_size`), the codec embedding included; the projection follows.

        prompt row i      h(x_i) + e(x_i)             (placeholders: h(x_i))
        voice row         e(voice.bos_token) + c(pad)
        reply row 0       r_0 + c(start)
        reply row t       r_t + c(code_{t-1})
    """

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.config = config
        self.thinker_to_talker_proj = nn.Linear(config.embedding_size, decoder.hidden_size)
        self.model = Decoder(decoder, config.embedding_size)
        self.codec_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)

    def prepare(self) -> None:
        self.model.prepare()

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codec tokens [N] to rows in the Thinker's space [N, embedding_size]."""
        return self.model.embed_tokens(codes)  # type: ignore[no-any-return]

    def forward(self, rows: Tensor, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Rows [N, embedding_size] to hidden states after the final norm [N, hidden]; extends `kv`."""
        return self.model(self.thinker_to_talker_proj(rows), batch, kv)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, hidden] to float32 logits [B, V]."""
        return self.codec_head(hidden).float()  # type: ignore[no-any-return]

    def prompt_history(self) -> tuple[int, ...]:
        """Ids that the repetition penalty has seen before the first code."""
        c = self.config
        return c.tts_codec_mask_token_id, c.tts_codec_pad_token_id, c.tts_codec_start_token_id


def suppressed_codes(talker: TalkerConfig, dit: DitConfig) -> Tensor:
    """Bool [V]: codes the Talker may never emit: the start id, and whatever the codec has no embedding for.

    Differs from reference: it suppresses the start id only, and crashes in the codec when an id without an embedding
    is drawn.
    """
    mask = torch.arange(talker.decoder.vocab_size) >= dit.num_embeds + 1
    mask[torch.tensor(talker.stop_ids)] = False
    mask[talker.tts_codec_start_token_id] = True
    return mask
