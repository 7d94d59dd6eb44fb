"""Loading a checkpoint in the published layout: a folder or a hub name, straight to the device, strictly.

Every tensor is checked against the architecture before the first byte of data is read, so a wrong checkpoint is one
error that names what is wrong. Weights are filled module by module: at no time is there a second copy of more than one
tensor, and with int8 the full-precision form of one layer.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor, nn

WeightFormat = Literal["plain", "int8"]
FILES = ("*.json", "*.safetensors", "spk_dict.pt", "merges.txt", "*.txt")
IGNORED_SUFFIXES = (".inv_freq", ".filter")
"""Constant buffers some checkpoints carry; they are recomputed."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file or tensor and, where there is one, the remedy."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading has come, in bytes of the checkpoint."""

    done_bytes: int
    total_bytes: int
    tensor: str


def locate(source: str | Path) -> Path:
    """The folder of a checkpoint: `source` itself, or the local snapshot of a hub name (downloaded if need be).

    Raises:
        CheckpointError: neither a folder nor a name the hub can deliver.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise CheckpointError(
            f"{name} is not a folder; give a checkpoint folder or a hub name such as Qwen/Qwen2.5-Omni-7B"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # hub and network errors derive from these
        raise CheckpointError(
            f"{name} is not a folder here and could not be downloaded ({type(error).__name__}: {error}); "
            "check the name and the network, or pass a local folder"
        ) from error


@dataclass(slots=True)
class TensorFiles:
    """The safetensors of a checkpoint, opened but not read."""

    folder: Path
    files_by_tensor: dict[str, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def open(cls, folder: Path) -> TensorFiles:
        """Raises CheckpointError for a missing, truncated or malformed file."""
        opened = cls(folder)
        for path in _shards(folder):
            shard = opened._open(path)
            for name in shard.keys():  # not a dict
                if not name.endswith(IGNORED_SUFFIXES):
                    opened.files_by_tensor[name] = shard
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def drop(self, *prefixes: str) -> None:
        """Forget tensors that are not wanted."""
        kept = {n: f for n, f in self.files_by_tensor.items() if not n.startswith(prefixes)}
        self.files_by_tensor = kept

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files_by_tensor[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self.files_by_tensor[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder}: tensor {name} cannot be read: {error}") from None
        return tensor

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, "pt"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; the index lists it") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file ({error}); download it again"
            ) from None


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from None
        return [folder / name for name in sorted(set(weight_map.values()))]
    single = folder / "model.safetensors"
    if not single.exists():
        raise CheckpointError(
            f"{folder} holds no weights: neither {single.name} nor {index.name} is there"
        )
    return [single]


def check_tensors(model: nn.Module, files: TensorFiles, optional: Sequence[str] = ()) -> None:
    """Compare names and shapes without reading data.

    Raises:
        CheckpointError: names the first missing, extra or misshapen tensors and counts the rest.
    """
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: files.shape(name) for name in files.files_by_tensor}
    missing = sorted(expected.keys() - found.keys() - set(optional))
    extra = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and found[name] != shape
    ]
    problems = [
        _some("missing", missing),
        _some("not part of this architecture", extra),
        _some("misshapen", misshapen),
    ]
    if any(problems):
        raise CheckpointError(
            f"{files.folder} does not fit its config.json: " + "; ".join(filter(None, problems))
        )


def _some(what: str, names: Sequence[str], limit: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} tensor(s) {what}: {', '.join(names[:limit])}{more}"


def fill(
    model: nn.Module,
    files: TensorFiles,
    device: torch.device,
    *,
    arrange: Callable[[str, nn.Module], nn.Module] = lambda name, leaf: leaf,
    progress: Callable[[LoadProgress], None] | None = None,
) -> None:
    """Materialise `model` (built on the meta device, in its target dtypes) on `device` and load its weights.

    Args:
        model: names of its state dict are those of the checkpoint. Modules of which the checkpoint has nothing stay
            on the meta device.
        files: checked against the model already.
        device: where the weights go.
        arrange: what to put in the place of a loaded module, given its name; what it replaces is freed at once.
        progress: called after each tensor.
    """
    sizes = {n: _num_bytes(t) for n, t in model.state_dict().items() if n in files.files_by_tensor}
    total, done = sum(sizes.values()), 0
    for name in _leaf_names(model):
        leaf = model.get_submodule(name)
        if sizes.keys().isdisjoint(leaf.state_dict(prefix=f"{name}.")):
            continue
        leaf.to_empty(device=device, recurse=False)
        for tensor_name, view in leaf.state_dict(prefix=f"{name}.").items():
            view.copy_(files.read(tensor_name))
            done += sizes[tensor_name]
            if progress:
                progress(LoadProgress(done, total, tensor_name))
        arranged = arrange(name, leaf)
        if arranged is not leaf:
            model.set_submodule(name, arranged)


def _leaf_names(model: nn.Module) -> list[str]:
    """Modules that own parameters themselves. Names, because a list of modules would keep replaced ones alive."""
    return [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
