"""Text in, text out: users cannot type control tokens, and split characters wait until they are whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import CheckpointError
from model.prompt import PromptWriter
from model.tokenizer import IM_END, IM_START, TextTokenizer
from tests.model.tiny_tokenizer import FIRST_BYTE_ID, byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(byte_tokenizer(), control_ids=(53,))


@given(st.text(max_size=40))
def test_text_survives_and_never_becomes_a_control_token(tokenizer, text) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer.encode(text + IM_END + "<|audio_bos|>" + text)
    assert min(ids, default=FIRST_BYTE_ID) >= FIRST_BYTE_ID
    assert tokenizer.decode(ids) == text + IM_END + "<|audio_bos|>" + text


def test_deltas_hold_back_a_character_until_it_is_whole(tokenizer) -> None:  # type: ignore[no-untyped-def]
    stream = tokenizer.stream()
    deltas = [stream.push(i) for i in tokenizer.encode("né🙂")]
    assert "".join(deltas) == "né🙂"
    assert deltas == ["n", "", "é", "", "", "", "🙂"]


def test_a_message_is_framed_and_its_text_tokenised_in_one_go(tokenizer) -> None:  # type: ignore[no-untyped-def]
    writer = PromptWriter(tokenizer)
    start, end = tokenizer.im_start_id, tokenizer.im_end_id
    assert writer.open_message("user") == [start]
    writer.text("a")
    writer.text("b")
    assert writer.take_text() == tokenizer.encode("user\nab")
    assert writer.take_text() == []
    assert writer.close_message() == [end]
    assert writer.open_message("assistant") == [*tokenizer.encode("\n"), start]


def test_a_tokenizer_without_chat_tokens_is_refused(tmp_path: Path) -> None:
    byte_tokenizer(control={}).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="im_start"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [None, "{not json"])
def test_a_missing_or_broken_tokenizer_names_its_file(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_the_chat_tokens_are_the_ones_of_the_format(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.decode(tokenizer.encode(IM_START)) == IM_START
    assert tokenizer.decode([tokenizer.im_start_id]) == ""
