"""Voices: what makes the same codec tokens sound like one speaker or another.

Published checkpoints carry them in `spk_dict.pt`, our own in `voices.safetensors`; both load here.
Naming trap of the published code: the network argument called *speaker_embedding* carries `cond`,
and *condition_vector* carries `ref_mel`. Here both keep the name they have in the file.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from model.config import DitConfig


class VoiceError(ValueError):
    """A voice file cannot be used; the message names file, voice and field."""


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One speaker.

    `bos_token` is the text id at the Talker's voice position; `cond` [enc_emb_dim] joins every mel
    frame of the DiT; `ref_mel` [T, M] goes through its speaker encoder. Tensors are float32 on the
    CPU.
    """

    name: str
    bos_token: int
    cond: Tensor
    ref_mel: Tensor


def load_voices(path: Path, config: DitConfig) -> dict[str, Voice]:
    """Read every voice of a `spk_dict.pt` or `voices.safetensors`, by name.

    Raises:
        VoiceError: the file is missing or unreadable, or a voice does not fit `config`.
    """
    if not path.is_file():
        raise VoiceError(f"{path} does not exist; a checkpoint that speaks holds its voices there")
    entries = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not entries:
        raise VoiceError(f"{path} holds no voice")
    return {str(name): _voice(path, str(name), entry, config) for name, entry in entries.items()}


def save_voices(path: Path, voices: Iterable[Voice]) -> None:
    """Write `voices.safetensors`: tensors `NAME.cond` and `NAME.ref_mel`, the rest as JSON in its
    metadata.
    """
    chosen = list(voices)
    tensors = {f"{v.name}.cond": v.cond.contiguous() for v in chosen}
    tensors |= {f"{v.name}.ref_mel": v.ref_mel.contiguous() for v in chosen}
    described = {v.name: {"bos_token": v.bos_token} for v in chosen}
    save_file(tensors, path, metadata={"voices": json.dumps(described)})


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise VoiceError(f"{path} is not a plain file of tensors: {error}") from error
    if not isinstance(entries, Mapping):
        raise VoiceError(f"{path} holds a {type(entries).__name__}; it must map names to voices")
    return entries


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get("voices", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # no mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise VoiceError(f"{path} is not a readable safetensors file: {error}") from error
    if not isinstance(described, Mapping):
        raise VoiceError(
            f"{path} lacks the 'voices' entry in its metadata; write it with save_voices"
        )
    fields = ("cond", "ref_mel")
    return {
        name: {**entry, **{f: tensors[f"{name}.{f}"] for f in fields if f"{name}.{f}" in tensors}}
        for name, entry in described.items()
    }


def _voice(path: Path, name: str, entry: Any, config: DitConfig) -> Voice:
    where = f"{path}: voice {name!r}"
    if not isinstance(entry, Mapping):
        raise VoiceError(
            f"{where} is a {type(entry).__name__}; it must hold cond, ref_mel, bos_token"
        )
    for field in ("cond", "ref_mel", "bos_token"):
        if field not in entry:
            raise VoiceError(f"{where} lacks {field}")
    bos_token = entry["bos_token"]
    if isinstance(bos_token, Tensor) and bos_token.numel() == 1:
        bos_token = bos_token.item()
    if not isinstance(bos_token, int) or isinstance(bos_token, bool) or bos_token < 0:
        raise VoiceError(f"{where}: bos_token is {bos_token!r}; it must be a text token id")
    cond = _tensor(where, "cond", entry["cond"], 1, config.enc_emb_dim)
    ref_mel = _tensor(where, "ref_mel", entry["ref_mel"], 2, config.mel_dim)
    return Voice(name, bos_token, cond, ref_mel)


def _tensor(where: str, field: str, value: Any, dims: int, width: int) -> Tensor:
    """Accept a tensor of `dims` axes ending in `width`, with or without a leading axis of one."""
    if not isinstance(value, Tensor):
        raise VoiceError(f"{where}: {field} is a {type(value).__name__}; it must be a tensor")
    shape = tuple(value.shape)
    squeezed = value[0] if value.dim() == dims + 1 and shape[0] == 1 else value
    if squeezed.dim() != dims or squeezed.shape[-1] != width or not squeezed.numel():
        wanted = f"({width},)" if dims == 1 else f"(T, {width})"
        raise VoiceError(f"{where}: {field} has shape {shape}; it must be {wanted}")
    if not squeezed.is_floating_point() or not squeezed.isfinite().all():
        raise VoiceError(f"{where}: {field} must hold finite floating-point numbers")
    return squeezed.float().contiguous()
