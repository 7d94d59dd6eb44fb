"""A reply is spoken up to the marker, however its text is cut into tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.engine.spoken_text import SpokenText

MARKER = "<tool_call>"
# Few letters, so that beginnings of the marker, whole and broken ones, are common.
PIECES = st.lists(
    st.sampled_from(["", " ", "<", "<to", "ol_", "call>", "<tool_call>", "a", "Yes, "])
)


@given(PIECES)
def test_certain_tokens_end_where_the_marker_begins(pieces: list[str]) -> None:
    spoken, text, certain = SpokenText(MARKER), "", 0
    for count, piece in enumerate(pieces, 1):
        text += piece
        spoken.push(piece)
        assert spoken.num_certain >= certain, "what was certain stays so"
        certain = spoken.num_certain
        assert certain <= count
        assert MARKER not in "".join(pieces[:certain])
        assert spoken.is_over == (MARKER in text)
    spoken.close()
    head = text.partition(MARKER)[0]
    said = "".join(pieces[: spoken.num_certain])
    assert head.startswith(said)
    if head.strip():
        following = pieces[spoken.num_certain : spoken.num_certain + 1]
        assert spoken.num_certain == len(pieces) or len(said + following[0]) > len(head)
    else:
        assert spoken.num_certain == 0


@given(PIECES)
def test_without_a_marker_every_token_is_spoken_at_once(pieces: list[str]) -> None:
    spoken = SpokenText(None)
    for count, piece in enumerate(pieces, 1):
        spoken.push(piece)
        assert spoken.num_certain == count


@pytest.mark.parametrize("text", ["a<", "a<b", "a<tool_cal", "a<tool_call"])
def test_what_only_looked_like_a_marker_is_spoken_in_the_end(text: str) -> None:
    spoken = SpokenText(MARKER)
    for character in text:
        spoken.push(character)
    spoken.close()
    assert spoken.num_certain == len(text)
