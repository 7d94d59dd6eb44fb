"""The sizes and special ids of omni-tiny, as the `config.json` it ships with."""

from __future__ import annotations

from typing import Any

from model.config import OmniConfig, Token2WavConfig

# One codebook. A code names what sounds (a phoneme, or none), and how: two numbers quantised to so many levels each.
NUM_SOUNDS, CODE_LEVELS = 50, (5, 4)
NUM_WAYS = 5 * 4
NUM_CODES = NUM_SOUNDS * NUM_WAYS
REPEATS = 4  # mel frames per code: 25 codes per second

# SmolLM2 has fourteen control tokens for code files that chat never uses; twelve become ours.
MARKERS = {
    "<|AUDIO|>": 3,
    "<|audio_bos|>": 4,
    "<|audio_eos|>": 5,
    "<|vision_bos|>": 6,
    "<|vision_eos|>": 7,
    "<|IMAGE|>": 8,
    "<|VIDEO|>": 9,
    "<tts_pad>": 10,
    "<tts_text_bos>": 11,
    "<tts_text_eos>": 12,
    "<|voice_chelsie|>": 13,
    "<|voice_ethan|>": 14,
}
UNTRAINED_ID = 15  # stays as it was in the source
VOICES = {"Chelsie": ("gongitsune", 13), "Ethan": ("joe", 14)}

SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# The residual stream of the Thinker runs at this many times its source's size, which changes none of its logits: a
# power of two is exact, and the norms' epsilon follows. The Talker sees h + e, and in the source h is eighteen times
# as long as e, which alone says what to pronounce; here e is three times as long as h.
STREAM_SCALE = 8

# The source is 576 wide. The rest of each embedding spells how its token sounds: up to ten phonemes, six signs each (a
# phoneme's number in binary), then one number that makes all spellings equally long, and nothing in three dimensions
# that make the width a multiple of 32. No layer reads or writes it. As it adds the same to every norm's mean square, a
# smaller epsilon takes it out again.
SOURCE_HIDDEN, SLOTS, SIGNS, SPELLING_SCALE = 576, 10, 6, 2**-4
HIDDEN = SOURCE_HIDDEN + SLOTS * SIGNS + 4
SPELLING_ENERGY = SLOTS * SIGNS * SPELLING_SCALE**2
VOCABULARY = 49_152
# Codec ids follow the codes themselves, in the published order.
CODEC_PAD, CODEC_BOS, CODEC_EOS, CODEC_MASK = (NUM_CODES + i for i in range(4))

TEXT: dict[str, Any] = {
    "model_type": "qwen2_5_omni_text",
    "hidden_size": HIDDEN,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rms_norm_eps": (1e-5 * STREAM_SCALE**2 * SOURCE_HIDDEN - SPELLING_ENERGY) / HIDDEN,
    "rope_theta": 100_000.0,
    "rope_scaling": {"mrope_section": [12, 10, 10], "rope_type": "default", "type": "default"},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
AUDIO: dict[str, Any] = {
    "model_type": "qwen2_5_omni_audio_encoder",
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "d_model": 384,
    "max_source_positions": 1500,
    "n_window": 100,
    "output_dim": HIDDEN,
}
VISION: dict[str, Any] = {
    "model_type": "qwen2_5_omni_vision_encoder",
    "depth": 6,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_heads": 3,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": HIDDEN,
    "fullatt_block_indexes": [2, 5],
}
PIXELS = {"min_pixels": 16 * 28**2, "max_pixels": 64 * 28**2}
TALKER: dict[str, Any] = {
    "model_type": "qwen2_5_omni_talker",
    "embedding_size": HIDDEN,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100_000.0,
    "rope_scaling": {"mrope_section": [12, 10, 10], "rope_type": "default", "type": "default"},
    "tts_text_pad_token_id": MARKERS["<tts_pad>"],
    "tts_text_start_token_id": MARKERS["<tts_text_bos>"],
    "tts_text_end_token_id": MARKERS["<tts_text_eos>"],
    "tts_codec_pad_token_id": CODEC_PAD,
    "tts_codec_start_token_id": CODEC_BOS,
    "tts_codec_end_token_id": CODEC_EOS,
    "tts_codec_mask_token_id": CODEC_MASK,
    "audio_token_index": MARKERS["<|AUDIO|>"],
    "image_token_index": MARKERS["<|IMAGE|>"],
    "video_token_index": MARKERS["<|VIDEO|>"],
    "vision_start_token_id": MARKERS["<|vision_bos|>"],
    "position_id_per_seconds": 25,
    "seconds_per_chunk": 2,
}
SOLVER = {"method": "euler", "num_points": 3, "guidance": 0.0}
"""Two evaluations, no guidance: what the flow is trained for. From so little noise four were heard no better."""

DIT: dict[str, Any] = {
    "model_type": "qwen2_5_omni_dit",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "head_dim": 64,
    "ff_mult": 2,
    "emb_dim": 192,
    "block_size": 24,
    "look_ahead_layers": [3],
    "look_backward_layers": [0, 6],
    "repeats": REPEATS,
    # Half of what it is trained from. Of joe's words 12 % are lost then, 21 % from all of it and 17 % from nothing.
    "noise_scale": 0.2,
    "num_embeds": NUM_CODES - 1,  # the table has one row more than this field says
    "mel_dim": 80,
    "enc_emb_dim": 64,
    "enc_dim": 64,
    "enc_channels": [64, 64, 64, 64, 192],
    "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1],
    "enc_attention_channels": 32,
    "enc_res2net_scale": 2,
    "enc_se_channels": 32,
}
# One residual kernel, 256 channels: the best use of a small budget of time per sample among those tried (real-time
# factor on one core 0.08; 0.09 for two kernels at 128 channels, 0.14 for two at 256).
BIGVGAN: dict[str, Any] = {
    "model_type": "qwen2_5_omni_bigvgan",
    "mel_dim": 80,
    "upsample_initial_channel": 256,
    "resblock_kernel_sizes": [7],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "upsample_rates": [5, 3, 2, 2, 2, 2],
    "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
}
# Of whole replies the recogniser missed 38 % of the words at 0.3, 42 % at 0.6 and 51 % at 0.9, the published default.
TALKER_TEMPERATURE = 0.3
GENERATION: dict[str, Any] = {"eos_token_id": [2], "talker_temperature": TALKER_TEMPERATURE}
CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_omni",
    "architectures": ["Qwen2_5OmniModel"],
    "enable_audio_output": True,
    "enable_talker": True,
    "thinker_config": {
        "model_type": "qwen2_5_omni_thinker",
        "audio_config": AUDIO,
        "vision_config": VISION,
        "text_config": TEXT,
        "audio_token_index": MARKERS["<|AUDIO|>"],
        "image_token_index": MARKERS["<|IMAGE|>"],
        "video_token_index": MARKERS["<|VIDEO|>"],
        "audio_start_token_id": MARKERS["<|audio_bos|>"],
        "audio_end_token_id": MARKERS["<|audio_eos|>"],
        "vision_start_token_id": MARKERS["<|vision_bos|>"],
        "vision_end_token_id": MARKERS["<|vision_eos|>"],
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    },
    "talker_config": TALKER,
    "token2wav_config": {
        "model_type": "qwen2_5_omni_token2wav",
        "dit_config": DIT,
        "bigvgan_config": BIGVGAN,
        "solver_config": SOLVER,
    },
}


def config() -> OmniConfig:
    """The same, parsed."""
    return OmniConfig.from_json(CONFIG)


def codec_decoder() -> Token2WavConfig:
    """The sizes of DiT and vocoder."""
    decoder = config().token2wav
    assert decoder is not None
    return decoder
