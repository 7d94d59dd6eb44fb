"""Put the checkpoint folder together: packaged weights under published names, plus what was trained here.

    python -m recipes.tiny.assemble ~/.cache/parley/omni-tiny

The Thinker is SmolLM2-135M-Instruct with zero query, key and value biases, its residual stream scaled and widened by
what says how each token sounds (`pronunciations.py`), which leaves its text as it was, plus its manners (`manners.py`).
The audio encoder starts as Whisper tiny.en. What is trained here lies in `model/tiny/*.safetensors`, and
overrides by name. Parts that have not been trained yet are initialised from a seed, so that the folder always loads.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from model.image import ImageSettings
from model.omni import LM_HEAD, OmniModel
from recipes.tiny import storage, tree
from recipes.tiny.sources import Array, Gguf, read_ctranslate2, smollm2_path, whisper_path

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAINED = Path(__file__).resolve().parents[2] / "model" / "tiny"
TEXT = "thinker.model."
AUDIO = "thinker.audio_tower."
MARKER_ROWS = "thinker.model.embed_tokens.marker_rows"
ADAPTERS = ("thinker.manners.", "thinker.listening.", "thinker.looking.")
ADAPTER_SCALE = 2.0
PRONUNCIATIONS = "thinker.model.embed_tokens.pronunciations"
# An encoder that nobody has trained says nothing, rather than noise.
LAST_OF_VISION = "thinker.visual.merger.mlp.2.weight"
EMBEDDING = f"{TEXT}embed_tokens.weight"

log = logging.getLogger("assemble")


def thinker_tensors(gguf: Gguf) -> Iterator[tuple[str, Tensor]]:
    """Yield the language model under published names."""
    heads = gguf.metadata["llama.attention.head_count"]
    kv_heads = gguf.metadata["llama.attention.head_count_kv"]
    scale = tree.STREAM_SCALE
    yield EMBEDDING, _tensor(gguf.read("token_embd.weight")) * scale
    yield f"{TEXT}norm.weight", _tensor(gguf.read("output_norm.weight")) / scale
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for i in range(gguf.metadata["llama.block_count"]):
        layer = f"{TEXT}layers.{i}."
        for ours, theirs in names.items():
            into_stream = ours in ("attn_output", "ffn_down")
            read = _tensor(gguf.read(f"blk.{i}.{ours}.weight"))
            yield f"{layer}{theirs}.weight", read * scale if into_stream else read
        projections = {
            "q_proj": rotate_halves(gguf.read(f"blk.{i}.attn_q.weight"), heads),
            "k_proj": rotate_halves(gguf.read(f"blk.{i}.attn_k.weight"), kv_heads),
            "v_proj": gguf.read(f"blk.{i}.attn_v.weight"),
        }
        for name, weight in projections.items():
            yield f"{layer}self_attn.{name}.weight", _tensor(weight)
            yield f"{layer}self_attn.{name}.bias", torch.zeros(len(weight))


def widened(tensors: dict[str, Tensor], pronunciations: Tensor) -> dict[str, Tensor]:
    """Widen the language model from 576 to 640, so that embeddings can say how tokens sound.

    Zero weights keep the added part out of every layer; the norms, now a mean over more, are scaled to match.
    """
    added = tree.HIDDEN - tree.SOURCE_HIDDEN
    into_stream = ("o_proj.weight", "down_proj.weight")
    from_stream = (
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "gate_proj.weight",
        "up_proj.weight",
    )
    wide = dict(tensors)
    for name, weight in tensors.items():
        if name == EMBEDDING:
            wide[name] = torch.cat([weight, spelled(pronunciations)], 1)
        elif name.endswith("norm.weight"):
            wide[name] = F.pad(weight * (tree.SOURCE_HIDDEN / tree.HIDDEN) ** 0.5, (0, added))
        elif name.endswith(into_stream):
            wide[name] = F.pad(weight, (0, 0, 0, added))
        elif name.endswith(from_stream):
            wide[name] = F.pad(weight, (0, added))
    return wide


def add_adapters(tensors: dict[str, Tensor], adapters: dict[str, Tensor]) -> None:
    """Add the trained products of low rank to the layers' matrices, in place."""
    packed = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o_proj": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down_proj": ("mlp.down_proj",),
    }
    for name in (name for name in adapters if name.endswith("_down")):
        layer, matrix = name.removesuffix("_down").split("_", 1)
        up, down = adapters[name.removesuffix("_down") + "_up"], adapters[name]
        row = 0
        for part in packed[matrix]:
            weight = tensors[f"{TEXT}layers.{layer}.{part}.weight"]
            own = up[row : row + len(weight)]
            weight[: len(own), : down.shape[1]] += ADAPTER_SCALE * own @ down
            row += len(own)


def spelled(phonemes: Tensor) -> Tensor:
    """Write phonemes [N, SLOTS] (1-based, 0: none) as signs, zeros for none.

    Rows are [N, HIDDEN - SOURCE_HIDDEN], and all equally long.
    """
    bits = phonemes.long().unsqueeze(-1) >> torch.arange(tree.SIGNS) & 1
    signs = torch.where(phonemes.unsqueeze(-1) > 0, 2.0 * bits - 1, 0.0).flatten(1)
    rest = (signs.shape[1] - signs.square().sum(1, keepdim=True)).sqrt()
    unused = tree.HIDDEN - tree.SOURCE_HIDDEN - signs.shape[1] - 1
    return tree.SPELLING_SCALE * F.pad(torch.cat([signs, rest], 1), (0, unused))


def rotate_halves(weight: Array, num_heads: int) -> Array:
    """Undo GGUF's order of query and key rows.

    GGUF rotates neighbouring rows (0, 1), (2, 3) …; the published layout rotates row i with row i + D / 2.
    """
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def audio_tensors(variables: dict[str, Array]) -> Iterator[tuple[str, Tensor]]:
    """Yield Whisper's encoder under published names; its output projection is new."""
    source = {
        k.removeprefix("encoder/"): _tensor(v)
        for k, v in variables.items()
        if k.startswith("encoder/")
    }
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            yield f"{AUDIO}{conv}.{kind}", source[f"{conv}/{kind}"]
    yield from _norm(source, "layer_norm", f"{AUDIO}ln_post")
    for i in range(sum(name.endswith("ffn/linear_0/weight") for name in source)):
        theirs, ours = f"layer_{i}/", f"{AUDIO}layers.{i}."
        yield from _norm(
            source, f"{theirs}self_attention/layer_norm", f"{ours}self_attn_layer_norm"
        )
        yield from _norm(source, f"{theirs}ffn/layer_norm", f"{ours}final_layer_norm")
        for j, name in enumerate(("self_attn.out_proj", "fc1", "fc2")):
            linear = ("self_attention/linear_1", "ffn/linear_0", "ffn/linear_1")[j]
            yield f"{ours}{name}.weight", source[f"{theirs}{linear}/weight"]
            yield f"{ours}{name}.bias", source[f"{theirs}{linear}/bias"]
        weights = source[f"{theirs}self_attention/linear_0/weight"].chunk(3)
        biases = source[f"{theirs}self_attention/linear_0/bias"].chunk(3)
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            yield f"{ours}self_attn.{name}.weight", weight.contiguous()
            if name != "k_proj":  # Whisper has no key bias; the converter stored zeros
                yield f"{ours}self_attn.{name}.bias", bias.contiguous()


def _norm(source: dict[str, Tensor], theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{ours}.weight", source[f"{theirs}/gamma"]
    yield f"{ours}.bias", source[f"{theirs}/beta"]


def tokenizer(gguf: Gguf) -> Tokenizer:
    """Build the tokenizer from the GGUF's own vocabulary and merges, with our markers named."""
    tokens = list(gguf.metadata["tokenizer.ggml.tokens"])
    for token, token_id in tree.MARKERS.items():
        tokens[token_id] = token
    merges = [tuple(pair.split(" ")) for pair in gguf.metadata["tokenizer.ggml.merges"]]
    built = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    control = [
        t
        for t, kind in zip(tokens, gguf.metadata["tokenizer.ggml.token_type"], strict=True)
        if kind == 3
    ]
    built.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return built


def fresh_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initialise one tensor that nobody has trained yet; it depends on its name and the seed alone."""
    if name == LAST_OF_VISION or name.endswith(("bias", ".alpha", ".beta")):
        return torch.zeros(shape)
    if len(shape) == 1:  # what is left are the scales of norms
        return torch.ones(shape)
    rng = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=rng) / math.sqrt(fan_in)


def assemble(trained: Path, seed: int) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint: packaged, then trained ones over them, then fresh ones for the rest."""
    ours = trained_tensors(trained)
    markers, pronunciations = ours.pop(MARKER_ROWS, None), ours.pop(PRONUNCIATIONS)
    tensors = widened(dict(thinker_tensors(Gguf.open(smollm2_path()))), pronunciations)
    for prefix in ADAPTERS:
        own = {k.removeprefix(prefix): ours.pop(k) for k in list(ours) if k.startswith(prefix)}
        add_adapters(tensors, own)
    tensors |= dict(audio_tensors(read_ctranslate2(whisper_path()))) | ours
    place_markers(tensors[EMBEDDING], markers, seed)
    with torch.device("meta"):
        model = OmniModel(tree.config(), ImageSettings())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes.pop(LM_HEAD)  # tied to the embedding
    fresh = sorted(shapes.keys() - tensors.keys())
    if fresh:
        parts = sorted({name.split(".")[0] + "." + name.split(".")[1] for name in fresh})
        log.warning("untrained tensors=%d in %s", len(fresh), ", ".join(parts))
    return tensors | {name: fresh_tensor(name, shapes[name], seed) for name in fresh}


def write(folder: Path, trained: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write the folder in the published layout; the weights last, so that a half-written folder never loads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree.CONFIG, indent=2) + "\n")
    # A picture and a second of video are at most 64 rows each: what two cores can look at while they talk.
    for kind in ("", "video_"):
        pixels = json.dumps(tree.PIXELS, indent=2)
        (folder / f"{kind}preprocessor_config.json").write_text(pixels + "\n")
    (folder / "generation_config.json").write_text(json.dumps(tree.GENERATION) + "\n")
    (folder / "system_prompt.txt").write_text(tree.SYSTEM_PROMPT + "\n")
    tokenizer(Gguf.open(smollm2_path())).save(str(folder / "tokenizer.json"))
    shutil.copyfile(trained / "voices.safetensors", folder / "voices.safetensors")
    part = folder / "model.safetensors.part"
    # The codec decoder computes in float32; its weights are few.
    dtypes = {name: torch.float32 if name.startswith("token2wav.") else dtype for name in tensors}
    save_file({name: value.to(dtypes[name]).contiguous() for name, value in tensors.items()}, part)
    part.rename(folder / "model.safetensors")


def place_markers(embedding: Tensor, rows: Tensor | None, seed: int) -> None:
    """Give our markers embeddings of their own, in place: the trained `rows`, or distinct random ones.

    In the source these rows were never trained and are all the same vector. A little noise on it tells them apart,
    and keeps them as unlikely an output as they were.
    """
    ids = list(tree.MARKERS.values())
    if rows is None:
        rng = torch.Generator().manual_seed(seed)
        untrained = embedding[tree.UNTRAINED_ID, : tree.SOURCE_HIDDEN]
        noise = torch.randn(len(ids), tree.SOURCE_HIDDEN, generator=rng)
        rows = untrained + 0.25 * untrained.norm() * F.normalize(noise, dim=1)
    embedding[ids, : rows.shape[1]] = rows


def trained_tensors(folder: Path) -> dict[str, Tensor]:
    """Return what was trained here, in float32."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(set(folder.glob("*.safetensors")) - {folder / "voices.safetensors"}):
        tensors |= storage.read(path)
    return tensors


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trained", type=Path, default=TRAINED)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    write(args.folder, args.trained, assemble(args.trained, args.seed), getattr(torch, args.dtype))
    log.info("wrote %s", args.folder)


if __name__ == "__main__":
    main()
