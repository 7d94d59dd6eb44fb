"""Write a checkpoint of random weights in the published layout: noise to hear, but every step as in the real one.

    python -m recipes.random_checkpoint /tmp/omni-random              # a few million parameters, seconds
    python -m recipes.random_checkpoint /tmp/omni-7b --shape 7b       # the published sizes, 22 GB in bf16

For trying the loading and streaming path without a download, and for measuring shapes whose weights are not at hand:
time does not depend on what the weights say. The tokenizer knows bytes and control tokens only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from model.codec.voice import Voice, save_voices
from model.config import OmniConfig
from model.image import PUBLISHED
from model.omni import OmniModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHARD_BYTES = 2 * 1024**3
PUBLISHED_CONTROL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|AUDIO|>": 151646,
    "<|audio_bos|>": 151647,
    "<|audio_eos|>": 151648,
    "<|vision_bos|>": 151652,
    "<|vision_eos|>": 151653,
    "<|IMAGE|>": 151655,
    "<|VIDEO|>": 151656,
}


def published(
    thinker: Mapping[str, Any], talker: Mapping[str, Any], rows: int, talker_section: list[int]
) -> dict[str, Any]:
    """The tree of a published `config.json`; `rows` is the width of everything the Thinker reads."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return {
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": {
            "audio_config": {"output_dim": rows},
            "vision_config": {"hidden_size": 1280, "out_hidden_size": rows},
            "text_config": {**thinker, "hidden_size": rows, "head_dim": 128}
            | {"rope_parameters": rope | {"mrope_section": [16, 24, 24]}},
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
        },
        "talker_config": {**talker, "vocab_size": 8448, "embedding_size": rows}
        | {"rope_parameters": rope | {"mrope_section": talker_section}},
        "token2wav_config": {"dit_config": {}, "bigvgan_config": {}},
    }


SEVEN_B = published(
    {"vocab_size": 152064, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4},
    {"hidden_size": 896, "intermediate_size": 18944, "num_hidden_layers": 24, "head_dim": 128}
    | {"num_attention_heads": 12, "num_key_value_heads": 4},
    3584,
    [16, 24, 24],
)
THREE_B = published(
    {"vocab_size": 151936, "intermediate_size": 11008, "num_hidden_layers": 36}
    | {"num_attention_heads": 16, "num_key_value_heads": 2},
    # The Talker's sizes of the 3B checkpoint are not confirmed by its file.
    {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "head_dim": 64}
    | {"num_attention_heads": 14, "num_key_value_heads": 2},
    2048,
    [16, 16, 0],
)


def small() -> dict[str, Any]:
    """A few million parameters in the same structure, ids and rates unchanged."""
    tree = published(
        {"vocab_size": 152064, "intermediate_size": 128, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        32,
        [2, 3, 3],
    )
    thinker, token2wav = tree["thinker_config"], tree["token2wav_config"]
    thinker["text_config"] |= {"head_dim": 16}
    thinker["text_config"]["rope_parameters"] |= {"mrope_section": [2, 3, 3]}
    thinker["audio_config"] |= {"num_mel_bins": 80, "d_model": 64, "encoder_layers": 2}
    thinker["audio_config"] |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 128}
    thinker["vision_config"] |= {"depth": 4, "hidden_size": 64, "num_heads": 2}
    thinker["vision_config"] |= {"intermediate_size": 96, "fullatt_block_indexes": [1, 3]}
    token2wav["dit_config"] |= {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
    token2wav["dit_config"] |= {"emb_dim": 32, "enc_emb_dim": 16, "enc_dim": 16}
    token2wav["dit_config"] |= {"enc_channels": [16, 16, 16, 16, 48]}
    token2wav["bigvgan_config"] |= {"upsample_initial_channel": 64}
    return tree


SHAPES = {"small": small(), "3b": THREE_B, "7b": SEVEN_B}


def byte_tokenizer(control: Mapping[str, int], first_byte: int = 0) -> Tokenizer:
    """Control tokens at their ids, the 256 bytes (in the byte-level alphabet's order) from `first_byte` on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: first_byte + i for i, char in enumerate(alphabet)} | dict(control)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in control])
    return tokenizer


def write(folder: Path, tree: dict[str, Any], seed: int, dtype: torch.dtype) -> None:
    """Write config, weights in shards, tokenizer and two voices."""
    folder.mkdir(parents=True, exist_ok=True)
    config = OmniConfig.from_json(tree)
    (folder / "config.json").write_text(json.dumps(tree, indent=1))
    byte_tokenizer(PUBLISHED_CONTROL).save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        names = {n: tuple(t.shape) for n, t in OmniModel(config, PUBLISHED).state_dict().items()}
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(_shards(names, generator, dtype)):
        file = f"model-{i:05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert config.token2wav is not None
    dit = config.token2wav.dit
    save_voices(
        folder / "voices.safetensors",
        [
            Voice(
                name=name,
                bos_token=bos,
                cond=torch.randn(1, dit.enc_emb_dim, generator=generator),
                ref_mel=torch.randn(1, 150, dit.mel_dim, generator=generator),
            )
            for name, bos in (("Chelsie", 151872), ("Ethan", 151870))
        ],
    )


def _shards(
    shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator, dtype: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    num_bytes = 0
    for name, shape in shapes.items():
        shard[name] = _random(name, shape, generator).to(dtype)
        num_bytes += shard[name].numel() * shard[name].element_size()
        if num_bytes > SHARD_BYTES:
            yield shard
            shard, num_bytes = {}, 0
    yield shard


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scaled so that signals neither die nor explode: unit embeddings, 1/sqrt(fan-in) matrices, gains near one."""
    if name.endswith((".alpha", ".beta")):
        return torch.zeros(shape)
    if "embed_tokens" in name or "codec_embed" in name:
        return torch.randn(shape, generator=generator)
    if len(shape) > 1:
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator) * (0.7 * fan_in**-0.5)
    noise = 0.05 * torch.randn(shape, generator=generator)
    return noise if name.endswith("bias") else 1 + noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    write(args.folder, SHAPES[args.shape], args.seed, dtype)
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    main()
