"""A checkpoint's own way of drawing tokens, read from its `generation_config.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from model.checkpoint import CheckpointError
from model.generation import Generation
from model.sampling import GREEDY, TALKER_SAMPLING, Sampling

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, listed: dict[str, Any]) -> Generation:
    (folder / "generation_config.json").write_text(json.dumps(listed))
    return Generation.from_folder(folder)


def test_without_a_file_text_is_greedy_and_speech_as_published(tmp_path: Path) -> None:
    assert Generation.from_folder(tmp_path) == Generation((), GREEDY, TALKER_SAMPLING)
    assert read(tmp_path, {}) == Generation((), GREEDY, TALKER_SAMPLING)


def test_end_ids_are_one_or_several(tmp_path: Path) -> None:
    assert read(tmp_path, {"eos_token_id": 2}).end_ids == (2,)
    assert read(tmp_path, {"eos_token_id": [2, 7]}).end_ids == (2, 7)


def test_without_do_sample_a_temperature_is_idle_and_a_penalty_works(tmp_path: Path) -> None:
    found = read(tmp_path, {"temperature": 0.7, "repetition_penalty": 1.1})
    assert found.thinker == Sampling(temperature=0, repetition_penalty=1.1)
    drawn = read(tmp_path, {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8})
    assert drawn.thinker == Sampling(0.7, 20, 0.8)


def test_the_talker_has_keys_of_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, {"talker_temperature": 0.4, "temperature": 2.0})
    assert found.talker == Sampling(0.4, 40, 0.8, 1.05)


BROKEN = (
    "{",
    "[]",
    '{"top_p": 3}',
    '{"talker_temperature": "warm"}',
    '{"eos_token_id": "<end>"}',
    '{"eos_token_id": [2, true]}',
)


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="generation_config"):
        Generation.from_folder(tmp_path)
