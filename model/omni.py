"""A checkpoint in memory: Thinker, Talker and codec decoder side by side, with tokenizer and voices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.checkpoint import (
    CheckpointError,
    LoadProgress,
    TensorFiles,
    WeightFormat,
    check_tensors,
    fill,
    locate,
)
from model.codec.decoder import CodecDecoder
from model.codec.voice import Voice, load_voices
from model.config import OmniConfig
from model.cpu_linear import Int8Linear, PrepackedLinear, suits_onednn
from model.generation import Generation
from model.image import ImageSettings
from model.layers import PackedLinear
from model.prompt import SPEECH_SYSTEM_PROMPT
from model.talker import Talker
from model.thinker import Thinker
from model.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.config import SolverConfig
    from model.windows import WindowSchedule

VOICE_FILES = ("voices.safetensors", "spk_dict.pt")
LM_HEAD = "thinker.lm_head.weight"
DECODE_BOUND = (
    "thinker.model.layers.",
    "thinker.lm_head",
    "talker.model.layers.",
    "talker.codec_head",
)
"""Linear layers that every decode step reads whole: the ones worth quantising.

Not the Talker's input projection: it is small, and reads the sum of a hidden state and an embedding, in which little
numbers may matter beside great ones (`omni-tiny` spells pronunciations at a sixteenth of the rest).
"""


class OmniModel(nn.Module):
    """The parts. The state dict has the published names; `prepare` must be called once after loading."""

    def __init__(
        self,
        config: OmniConfig,
        images: ImageSettings,
        solver: SolverConfig | None = None,
        schedule: WindowSchedule | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.thinker = Thinker(config.thinker, images)
        self.talker = Talker(config.talker) if config.talker else None
        self.token2wav = (
            CodecDecoder(config.token2wav, solver, schedule) if config.token2wav else None
        )

    def prepare(self) -> None:
        """Compute what derives from the weights, on the device they are on."""
        for part in (self.thinker, self.talker, self.token2wav):
            if part is not None:
                part.prepare()


@dataclass(frozen=True, slots=True)
class Omni:
    """A loaded checkpoint, ready to run."""

    model: OmniModel
    config: OmniConfig
    tokenizer: TextTokenizer
    voices: dict[str, Voice]
    images: ImageSettings
    end_ids: frozenset[int]
    """Text tokens that end a reply."""
    generation: Generation
    """How tokens are drawn unless a reply says otherwise."""
    system_prompt: str
    """What the checkpoint was trained to speak under: its `system_prompt.txt`, else the published one."""
    device: torch.device
    dtype: torch.dtype

    def voice(self, name: str | None = None) -> Voice:
        """The voice of that name, or the checkpoint's first.

        Raises:
            CheckpointError: there is no such voice; the message lists those there are.
        """
        if name is None and self.voices:
            return next(iter(self.voices.values()))
        if name not in self.voices:
            raise CheckpointError(f"no voice {name!r}; this checkpoint has {sorted(self.voices)}")
        return self.voices[name]


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    weights: WeightFormat = "plain",
    speech: bool = True,
    solver: SolverConfig | None = None,
    schedule: WindowSchedule | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
) -> Omni:
    """Load a checkpoint in the published layout.

    Args:
        source: a folder, or a hub name such as `Qwen/Qwen2.5-Omni-7B`.
        device: where the weights go, without a second copy.
        dtype: of Thinker and Talker; None takes bf16 where the device computes in it, else fp32. The codec decoder
            is fp32, as in the reference.
        weights: `int8` quantises what a decode step reads whole (Thinker and Talker matrices). A loaded model is for
            inference; on a CPU its linear layers are laid out for the kernels and no longer in the state dict.
        speech: False leaves Talker and codec decoder out.
        solver: how the codec integrates its flow; None: as the checkpoint says.
        schedule: the codec's windows.
        progress: called after each tensor.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, or another architecture.
        ConfigError: its `config.json` is.
    """
    folder, device = locate(source), torch.device(device)
    config = OmniConfig.from_file(folder / "config.json")
    if not speech:
        config = OmniConfig(config.thinker, None, None)
    dtype = dtype or default_dtype(device)
    images = image_settings(folder)
    with torch.device("meta"):
        model = OmniModel(config, images, solver, schedule)
    _fill(model, folder, device, dtype, weights, progress)
    tokenizer = TextTokenizer.from_folder(folder, config.thinker.control_ids)
    generation = Generation.from_folder(folder)
    return Omni(
        model=model,
        config=config,
        tokenizer=tokenizer,
        voices=_load_voices(folder, config),
        images=images,
        end_ids=frozenset((tokenizer.im_end_id, *generation.end_ids)),
        generation=generation,
        system_prompt=_system_prompt(folder),
        device=device,
        dtype=dtype,
    )


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def _fill(
    model: OmniModel,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    weights: WeightFormat,
    progress: Callable[[LoadProgress], None] | None,
) -> None:
    model.thinker.to(dtype)
    if model.talker:
        model.talker.to(dtype)
    arrange = partial(_arrange, as_int8=weights == "int8")
    with TensorFiles.open(folder) as files:
        if not model.config.has_speech:
            files.drop("talker.", "token2wav.")
        check_tensors(model, files, optional=(LM_HEAD,))
        fill(model, files, device, arrange=arrange, progress=progress)
        if LM_HEAD not in files.files_by_tensor:
            head = model.thinker.lm_head
            head.weight = model.thinker.model.embed_tokens.weight
            model.thinker.set_submodule("lm_head", arrange("thinker.lm_head", head))
    model.requires_grad_(False).eval()
    model.prepare()


def _arrange(name: str, leaf: nn.Module, *, as_int8: bool) -> nn.Module:
    """The form a linear layer runs in. The codec decoder sees to its own when it is prepared."""
    if not isinstance(leaf, nn.Linear | PackedLinear) or name.startswith("token2wav."):
        return leaf
    if as_int8 and name.startswith(DECODE_BOUND):
        return Int8Linear(leaf)
    return PrepackedLinear(leaf) if suits_onednn(leaf.weight) else leaf


def _load_voices(folder: Path, config: OmniConfig) -> dict[str, Voice]:
    if config.token2wav is None:
        return {}
    found = [folder / name for name in VOICE_FILES if (folder / name).exists()]
    return load_voices(found[0] if found else folder / VOICE_FILES[-1], config.token2wav.dit)


def image_settings(folder: Path) -> ImageSettings:
    """Read how a checkpoint's pictures are prepared.

    Raises:
        CheckpointError: the files are there and cannot be used.
    """
    images, video = (folder / f"{kind}preprocessor_config.json" for kind in ("", "video_"))
    try:
        trees = [json.loads(x.read_text("utf-8")) if x.exists() else {} for x in (images, video)]
        return ImageSettings.from_json(*trees)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{images} or {video} cannot be used: {error}") from None


def _system_prompt(folder: Path) -> str:
    path = folder / "system_prompt.txt"
    return path.read_text(encoding="utf-8").strip() if path.exists() else SPEECH_SYSTEM_PROMPT
