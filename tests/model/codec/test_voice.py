"""Voice files: published and our own, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from model.codec.voice import VoiceError, load_voices, save_voices
from tests.model.reference import VOICE_BOS, voice

if TYPE_CHECKING:
    from model.config import DitConfig


@pytest.fixture
def sizes(config: Any) -> DitConfig:
    dit: DitConfig = config.token2wav.dit
    return dit


def test_published_file_loads_with_and_without_the_leading_axis(
    tmp_path: Path, sizes: DitConfig
) -> None:
    entry = voice()
    flat = entry | {"cond": entry["cond"][0], "ref_mel": entry["ref_mel"][0]}
    torch.save({"Chelsie": entry, "Ethan": flat}, tmp_path / "spk_dict.pt")
    voices = load_voices(tmp_path / "spk_dict.pt", sizes)
    assert list(voices) == ["Chelsie", "Ethan"]
    for name, loaded in voices.items():
        assert (loaded.name, loaded.bos_token) == (name, VOICE_BOS)
        assert torch.equal(loaded.cond, entry["cond"][0])
        assert torch.equal(loaded.ref_mel, entry["ref_mel"][0])


def test_our_file_gives_back_what_was_saved(tmp_path: Path, sizes: DitConfig) -> None:
    torch.save({"A": voice(1), "B": voice(2) | {"bos_token": 5}}, tmp_path / "spk_dict.pt")
    voices = load_voices(tmp_path / "spk_dict.pt", sizes)
    save_voices(tmp_path / "voices.safetensors", voices.values())
    again = load_voices(tmp_path / "voices.safetensors", sizes)
    assert list(again) == ["A", "B"]
    for name, loaded in again.items():
        assert loaded.bos_token == voices[name].bos_token
        assert torch.equal(loaded.cond, voices[name].cond)
        assert torch.equal(loaded.ref_mel, voices[name].ref_mel)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cond": torch.zeros(1, 13)},
            r"voice 'Eve': cond has shape \(1, 13\); it must be \(12,\)",
        ),
        ({"cond": torch.zeros(2, 12)}, r"cond has shape \(2, 12\)"),
        ({"ref_mel": torch.zeros(37, 9)}, r"ref_mel has shape \(37, 9\); it must be \(T, 8\)"),
        ({"ref_mel": torch.zeros(1, 0, 8)}, r"ref_mel has shape \(1, 0, 8\)"),
        ({"ref_mel": torch.zeros(1, 4, 8, dtype=torch.int64)}, "ref_mel must hold finite"),
        ({"ref_mel": torch.full((9, 8), torch.nan)}, "ref_mel must hold finite"),
        ({"cond": [0.0] * 12}, "cond is a list"),
        ({"bos_token": "x"}, "bos_token is 'x'"),
        ({"bos_token": -3}, "bos_token is -3"),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, sizes: DitConfig, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "spk_dict.pt"
    torch.save({"Eve": voice() | changes}, path)
    with pytest.raises(VoiceError, match=message) as error:
        load_voices(path, sizes)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("field", ["cond", "ref_mel", "bos_token"])
def test_a_missing_field_is_named(tmp_path: Path, sizes: DitConfig, field: str) -> None:
    entry = voice()
    del entry[field]
    torch.save({"Eve": entry}, tmp_path / "spk_dict.pt")
    with pytest.raises(VoiceError, match=f"voice 'Eve' lacks {field}"):
        load_voices(tmp_path / "spk_dict.pt", sizes)


def test_unreadable_files_are_refused(tmp_path: Path, sizes: DitConfig) -> None:
    with pytest.raises(VoiceError, match=r"spk_dict\.pt does not exist"):
        load_voices(tmp_path / "spk_dict.pt", sizes)
    for name in ("spk_dict.pt", "voices.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of tensors")
        with pytest.raises(VoiceError, match=name):
            load_voices(tmp_path / name, sizes)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, sizes: DitConfig) -> None:
    torch.save({"Eve": Path("x")}, tmp_path / "spk_dict.pt")
    with pytest.raises(VoiceError, match="not a plain file of tensors"):
        load_voices(tmp_path / "spk_dict.pt", sizes)


@pytest.mark.parametrize("content", [{}, [voice()], {"Eve": 3}])
def test_other_pickled_things_are_refused(tmp_path: Path, sizes: DitConfig, content: Any) -> None:
    torch.save(content, tmp_path / "spk_dict.pt")
    with pytest.raises(VoiceError, match=r"spk_dict\.pt"):
        load_voices(tmp_path / "spk_dict.pt", sizes)


def test_our_file_without_its_description_or_a_tensor_is_refused(
    tmp_path: Path, sizes: DitConfig
) -> None:
    path = tmp_path / "voices.safetensors"
    save_file({"A.cond": torch.zeros(12)}, path)
    with pytest.raises(VoiceError, match="metadata"):
        load_voices(path, sizes)
    described = {"voices": json.dumps({"A": {"bos_token": 1}})}
    save_file({"A.cond": torch.zeros(12)}, path, metadata=described)
    with pytest.raises(VoiceError, match="voice 'A' lacks ref_mel"):
        load_voices(path, sizes)
