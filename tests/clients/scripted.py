"""A checkpoint that says what a script says, through its weights: every part runs as in a real one.

One attention layer looks for the newest cue in the prompt (a word, a sound, a picture); the cue chooses the first token
of the reply, and each token the one behind it. Two more heads know whether tools were offered and whether there was a
picture at all.

    … system  tools … user  ♪ ♪ ♪  assistant \\n      newest cue: sound; tools were offered   ─▶  <tool_call> …
    … user  Please count.  assistant \\n              newest cue: "count"                     ─▶  One 2 3 4 …

The Talker speaks random codes, one for each token of the text and a few more.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor

from model.codec.voice import Voice, save_voices
from model.config import OmniConfig
from model.image import PUBLISHED
from model.omni import OmniModel
from tests.model.reference import TINY, VOICE_BOS
from tests.model.tiny_tokenizer import FIRST_BYTE_ID, byte_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

SOUND, PICTURE = "a sound", "a picture"
"""Cues that an encoder gives, not a word."""
ENCODERS = {SOUND: "thinker.audio_tower.proj", PICTURE: "thinker.visual.merger.mlp.2"}
"""Their last layers."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is said, and after which newest cue. The first of a script is also said without one."""

    cues: tuple[str, ...]
    pieces: tuple[str, ...]
    """Its tokens. No other scene has one of them."""
    needs_tools: bool = False
    """Only if tools were offered."""
    needs_picture: bool = False
    """Only if there was a picture, anywhere."""

    @property
    def text(self) -> str:
        return "".join(self.pieces).strip()


COUNT_TO = 400
TOOL = "get_time"
ARGUMENTS = '{"place": "Oslo"}'
CALL = ("<tool_call>\n", f'{{"name": "{TOOL}", ', f'"arguments": {ARGUMENTS}}}', "\n</tool_call>")

OTHERWISE = Scene((" morning",), ("Good day", ", what", " can", " I do", " for", " you?"))
HEARD = Scene((SOUND,), ("I heard", " every", " word", " you've", " said", ", thank", " you."))
SEEN = Scene((PICTURE,), ("I see", " a picture", " with", " nothing", " on it."))
BOTH = Scene((SOUND,), ("I hear you", " while", " looking", " at you."), needs_picture=True)
COUNTED = Scene((" count",), ("One", *(f" {i}" for i in range(2, COUNT_TO + 1))))
CALLED = Scene((SOUND, " time"), CALL, needs_tools=True)
ANSWERED = Scene(("<tool_response>",), ("It is", " noon", " in Oslo", ", says", " the clock."))
WRITTEN_DOWN = Scene(("Transcribe",), ("one", " two", " three"))
SCRIPT = (OTHERWISE, HEARD, SEEN, BOTH, COUNTED, CALLED, ANSWERED, WRITTEN_DOWN)

HIDDEN = 128
NUM_NAMES = 96
"""Dimensions that tell tokens apart; the ones behind them have one meaning each."""
IS_CUE, SCENES, HAS_TOOLS, HAS_PICTURE, IS_PAD, NOTHING = 96, 97, 120, 121, 122, 123
HEAD_DIM = 16
SHARP = 3000.0
"""Attention looks at one place and nowhere else."""
FAINT = 1 / 8
"""What attention finds is about as loud as a token's name."""
IM_END, LINE_END = 58, "Ċ"
CODEC_PAD, CODEC_END, TEXT_PAD = 56, 58, 60


def write(folder: Path, script: Sequence[Scene] = SCRIPT, seed: int = 0) -> None:
    """Write the checkpoint."""
    tree = _tree(script)
    config = OmniConfig.from_json(tree)
    tokenizer = _tokenizer(script)
    torch.manual_seed(seed)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in OmniModel(config, PUBLISHED).state_dict().items()}
    tensors = {name: _random(name, shape) for name, shape in shapes.items()}
    _write_thinker(tensors, script, tokenizer)
    _write_talker(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert config.token2wav is not None
    dit = config.token2wav.dit
    voices = [
        Voice(name, VOICE_BOS, torch.randn(dit.enc_emb_dim), torch.randn(150, dit.mel_dim))
        for name in ("Chelsie", "Ethan")
    ]
    save_voices(folder / "voices.safetensors", voices)


def _tree(script: Sequence[Scene]) -> dict[str, Any]:
    tree = copy.deepcopy(TINY)
    thinker, talker = tree["thinker_config"], tree["talker_config"]
    num_pieces = sum(len(scene.pieces) + len(scene.cues) for scene in script) + 1
    thinker["text_config"] |= {
        "vocab_size": FIRST_BYTE_ID + 256 + num_pieces,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
    }
    thinker["audio_config"]["output_dim"] = HIDDEN
    thinker["vision_config"]["out_hidden_size"] = HIDDEN
    talker["embedding_size"] = HIDDEN
    # Nobody listens to it; the codec has its own tests.
    tree["token2wav_config"]["solver_config"] = {"method": "euler", "num_points": 3, "guidance": 0}
    return tree


def _tokenizer(script: Sequence[Scene]) -> Tokenizer:
    pieces = [piece for scene in script for piece in scene.pieces]
    assert len(set(pieces)) == len(pieces), "a piece is in two places; what follows it?"
    cues = {cue for scene in script for cue in scene.cues} - {SOUND, PICTURE}
    tokenizer = byte_tokenizer()
    words = [*pieces, *sorted(cues), "<tools>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith((".alpha", ".beta")):
        return torch.zeros(shape)
    if len(shape) > 1:
        return torch.randn(shape) * torch.Size(shape[1:]).numel() ** -0.5
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)


def _write_thinker(
    tensors: dict[str, Tensor], script: Sequence[Scene], tokenizer: Tokenizer
) -> None:
    table = tensors["thinker.model.embed_tokens.weight"]
    names = torch.randn(len(table), NUM_NAMES)
    names /= names.norm(dim=1, keepdim=True)
    table.zero_()
    table[:, :NUM_NAMES] = names
    table[TEXT_PAD, IS_PAD] = 1

    cues = sorted({cue for scene in script for cue in scene.cues})
    cue_dims = {cue: SCENES + i for i, cue in enumerate(cues)}
    assert SCENES + len(cues) <= HAS_TOOLS
    for cue, dim in cue_dims.items():
        row = torch.zeros(HIDDEN)
        row[[IS_CUE, dim, HAS_PICTURE if cue == PICTURE else NOTHING]] = 1
        if cue in ENCODERS:
            row[0] = 1
            tensors[f"{ENCODERS[cue]}.weight"].zero_()
            tensors[f"{ENCODERS[cue]}.bias"].copy_(row)  # whatever is heard or seen
        else:
            table[tokenizer.token_to_id(cue)] += row
    table[tokenizer.token_to_id("<tools>"), HAS_TOOLS] = 1
    # All rows of one length, so that normalising them changes no proportion.
    table *= 2 / table.norm(dim=1, keepdim=True)
    table[TEXT_PAD] *= 10  # the Talker is to notice it beside its own rows

    _write_attention(tensors, list(cue_dims.values()))
    head = tensors["thinker.lm_head.weight"].zero_()
    line_end = names[tokenizer.token_to_id(LINE_END)]
    for scene in script:
        ids = [tokenizer.token_to_id(piece) for piece in scene.pieces]
        for before, after in zip(ids, [*ids[1:], IM_END], strict=True):
            head[after, :NUM_NAMES] += 100 * names[before]
        # What speaks for beginning with this scene, weighed against others; all less than what follows a token.
        first, condition = head[ids[0]], int(scene.needs_tools or scene.needs_picture)
        weight = 100 + 5 * (scene is script[0]) - 5 * condition
        first[:NUM_NAMES] += weight * line_end
        first[[cue_dims[cue] for cue in scene.cues]] += 20
        first[HAS_TOOLS] += 12 * scene.needs_tools
        first[HAS_PICTURE] += 20 * scene.needs_picture


def _write_attention(tensors: dict[str, Tensor], cue_dims: list[int]) -> None:
    """Three heads: the newest cue, tools anywhere, a picture anywhere. Nothing else adds to the rows."""
    layer = "thinker.model.layers.0."
    for name in tensors:
        if name.startswith(layer) and "norm" not in name:
            tensors[name].zero_()
    q = tensors[layer + "self_attn.q_proj.bias"].view(4, HEAD_DIM)
    k, v = (tensors[f"{layer}self_attn.{x}_proj.weight"].view(4, HEAD_DIM, HIDDEN) for x in "kv")
    o = tensors[layer + "self_attn.o_proj.weight"].view(HIDDEN, 4, HEAD_DIM)
    half = HEAD_DIM // 2
    # A rotary pair that turns by 1/1000 per position: cos(π/4 + distance/1000) falls, and so the newest cue wins.
    newest, still = 4, half - 1
    q[0, newest] = SHARP
    k[0, newest, IS_CUE], k[0, newest + half, IS_CUE] = (
        math.cos(math.pi / 4),
        -math.sin(math.pi / 4),
    )
    v[0, range(len(cue_dims)), cue_dims] = 1
    o[cue_dims, 0, range(len(cue_dims))] = FAINT
    # The slowest pair hardly turns at all.
    for head, dim in ((1, HAS_TOOLS), (2, HAS_PICTURE)):
        q[head, still] = SHARP
        k[head, still, dim] = v[head, 0, dim] = 1
        o[dim, head, 0] = FAINT


def _write_talker(tensors: dict[str, Tensor]) -> None:
    """Let it stop only when the text has run out, and then soon."""
    always, is_over = 0, 1
    tensors["talker.thinker_to_talker_proj.weight"][:2].zero_()
    tensors["talker.thinker_to_talker_proj.weight"][is_over, IS_PAD] = 1
    tensors["talker.thinker_to_talker_proj.bias"][always] = 10
    for name, tensor in tensors.items():
        if name.startswith("talker.") and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:2].zero_()
    tensors["talker.model.embed_tokens.weight"][:, IS_PAD] = 0
    head = tensors["talker.codec_head.weight"]
    head[:, :2] = 0
    head[[CODEC_PAD, CODEC_END]] = 0
    head[CODEC_PAD, always] = head[CODEC_END, always] = -10
    head[CODEC_END, is_over] = 10
