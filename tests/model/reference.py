"""The oracle: `transformers` on a tiny random configuration, patched where release 5.23 departs from its intent."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
VOICE_BOS = 63
THINKER_EOS = 58
TALKER_STOPS = (56, 58)

TINY: dict[str, Any] = {
    "model_type": "qwen2_5_omni",
    "enable_audio_output": True,
    "thinker_config": {
        "audio_config": {
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16,
            "max_source_positions": 100, "n_window": 100, "output_dim": 32,
        },
        "vision_config": {
            "depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "out_hidden_size": 32, "fullatt_block_indexes": [1, 3],
        },
        "text_config": {
            "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": ROPE, "tie_word_embeddings": False,
        },
        "audio_token_index": 50, "image_token_index": 51, "video_token_index": 52, "audio_start_token_id": 53,
        "audio_end_token_id": 54, "vision_start_token_id": 55, "vision_end_token_id": 56, "user_token_id": 59,
        "position_id_per_seconds": 25, "seconds_per_chunk": 2,
    },
    "talker_config": {
        "vocab_size": 64, "embedding_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "rope_parameters": ROPE,
        "tts_text_pad_token_id": 60, "tts_text_start_token_id": 61, "tts_text_end_token_id": 62,
        "tts_codec_pad_token_id": 56, "tts_codec_start_token_id": 57, "tts_codec_end_token_id": 58, "tts_codec_mask_token_id": 60,
        "audio_token_index": 50, "image_token_index": 51, "video_token_index": 52, "audio_start_token_id": 53,
        "audio_end_token_id": 54, "vision_start_token_id": 55, "vision_end_token_id": 56,
    },
    "token2wav_config": {
        "dit_config": {
            "hidden_size": 32, "num_hidden_layers": 22,
            "num_attention_heads": 2, "ff_mult": 2, "emb_dim": 16, "head_dim": 16,
            "block_size": 24, "look_ahead_layers": [10], "look_backward_layers": [0, 20], "repeats": 2,
            "num_embeds": 64, "mel_dim": 8,
            "dropout": 0.1, "enc_emb_dim": 12, "enc_dim": 8,
            "enc_channels": [16, 16, 16, 16, 48], "enc_kernel_sizes": [5, 3, 3, 3, 1],
            "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 8, "enc_res2net_scale": 2, "enc_se_channels": 8,
        },
        "bigvgan_config": {"mel_dim": 8, "upsample_initial_channel": 64},
    },
}  # fmt: skip


def build(seed: int = 0, scale: float = 0.7) -> Qwen2_5OmniForConditionalGeneration:
    """A tiny reference model whose outputs vary: the default init (std 0.02) makes them near-constant."""
    torch.manual_seed(seed)
    reference = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**TINY)).eval()
    with torch.no_grad():
        for name, p in reference.named_parameters():
            _reinit(name, p, scale)
    restore_intended_talker(reference)
    return reference


def _reinit(name: str, p: Tensor, scale: float) -> None:
    if "alpha" in name or "beta" in name:
        p.normal_(0, 0.1)
    elif (
        "embed" in name and p.dim() == 2 and "input_embed" not in name and "time_embed" not in name
    ):
        p.normal_(0, 1)
    elif p.dim() >= 2:
        p.normal_(0, scale / math.sqrt(p[0].numel()))
    elif name.endswith("bias"):
        p.normal_(0, 0.05)
    else:
        p.normal_(1, 0.1)  # norm gains


def restore_intended_talker(reference: Qwen2_5OmniForConditionalGeneration) -> None:
    """Undo a defect of release 5.23: without an attention mask the Talker skips codec BOS/PAD and TMRoPE."""
    talker = reference.talker
    forward = talker.forward

    @functools.wraps(forward)  # generate() reads the signature
    def with_mask(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is None:
            fed = (
                kwargs["inputs_embeds"]
                if kwargs.get("inputs_embeds") is not None
                else kwargs["input_ids"]
            )
            past = kwargs.get("past_key_values")
            cached = past.get_seq_length() if past is not None else 0
            kwargs["attention_mask"] = torch.ones(
                fed.shape[0], cached + fed.shape[1], dtype=torch.long
            )
        return forward(*args, **kwargs)

    talker.forward = with_mask


def voice(seed: int = 7) -> dict[str, Any]:
    """One entry of a `spk_dict.pt` that fits the tiny configuration."""
    g = torch.Generator().manual_seed(seed)
    return {
        "bos_token": VOICE_BOS,
        "cond": torch.randn(1, 12, generator=g),
        "ref_mel": torch.randn(1, 37, 8, generator=g),
    }
