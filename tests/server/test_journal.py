"""Items in order, what the model is to know of them, and what is let go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import journal as module
from server.context import Picture, Words, reply_key
from server.items import (
    AssistantMessage,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    OutputAudio,
    OutputText,
    SystemMessage,
    UserMessage,
)
from server.items import InputText as Text
from server.journal import MAX_ECHOED_BYTES, Journal, Origin, Record
from server.tools import write_call
from streaming.media import ClipKind, ClipStart, FramePair, MediaChunk, VideoFrame

if TYPE_CHECKING:
    from server.context import Piece
    from server.items import Item


def user(item_id: str, *pieces: Piece) -> Record:
    return Record(UserMessage(item_id), 0, list(pieces) or [Words("user", item_id)])


def said(item_id: str, origin: Origin | None = None, text: str = "yes") -> Record:
    return Record(AssistantMessage(item_id, [OutputAudio(text)]), 0, origin=origin)


def filled(*records: Record) -> Journal:
    journal = Journal()
    for record in records:
        record.serial = journal.next_serial()
        journal.add(record, journal.tail_id)
    return journal


def ids(journal: Journal) -> list[str]:
    return [record.item.id for record in journal.records]


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=30))
def test_items_stand_where_they_were_put(moves: list[tuple[int, bool]]) -> None:
    journal, expected = Journal(), list[str]()
    for number, (place, removes) in enumerate(moves):
        if removes and expected:
            gone = expected.pop(place % len(expected))
            journal.remove(gone)
            assert journal.was_removed(gone)
            assert gone not in journal
            continue
        at = place % (len(expected) + 1)
        record = user(f"i{number}")
        before = expected[at - 1] if at else None
        assert journal.add(record, before) == before
        expected.insert(at, f"i{number}")
    assert ids(journal) == expected
    assert journal.tail_id == (expected[-1] if expected else None)


def test_what_is_gone_means_the_end() -> None:
    journal = filled(user("a"), user("b"))
    assert journal.add(user("c"), "nobody") == "b"


@pytest.mark.parametrize(
    ("item", "pieces"),
    [
        (
            SystemMessage("s", [Text("Be"), Text(""), Text("kind")]),
            [Words("system", "Be"), Words("system", "kind")],
        ),
        (AssistantMessage("a", [OutputText("Yes")]), [Words("assistant", "Yes")]),
        (AssistantMessage("a", []), []),
        (
            FunctionCallOutput("o", "c", "42"),
            [Words("user", "<tool_response>\n42\n</tool_response>")],
        ),
        (FunctionCall("f", "look", "c", "{}"), [Words("assistant", write_call("look", "{}"))]),
    ],
)
def test_items_are_told_as_the_model_writes_and_reads_them(item: Item, pieces: list[Piece]) -> None:
    [passage] = filled(Record(item, 0)).passages("s.1")
    assert list(passage.pieces) == pieces


def test_a_worker_is_not_told_what_it_said_itself() -> None:
    origin = Origin("s.1", 3)
    journal = filled(
        user("u"), said("a", origin), Record(FunctionCall("f", "look", "c", "{}"), 0, origin=origin)
    )
    assert [p.key for p in journal.passages("s.1")] == [("item", 1, 0), reply_key("s.1", 3)]
    assert [len(p.key) for p in journal.passages("s.2")] == [3, 3, 3]
    assert [p.key[0] for p in journal.passages("s.2")] == ["item"] * 3


@pytest.mark.parametrize("change", ["remove", "revise", "insert"])
def test_a_reply_whose_items_changed_is_told_like_any_other(change: str) -> None:
    origin = Origin("s.1", 3)
    journal = filled(
        said("a", origin), Record(FunctionCall("f", "look", "c", "{}"), 0, origin=origin)
    )
    record = journal.get("a")
    assert record is not None
    if change == "remove":
        journal.remove("f")
    elif change == "revise":
        journal.revise(record, "y", is_known=False)
    else:
        journal.add(user("u"), "a")
    assert all(passage.key[0] == "item" for passage in journal.passages("s.1"))


def test_a_revision_the_worker_knows_of_is_no_news() -> None:
    journal = filled(said("a", Origin("s.1", 3)))
    record = journal.get("a")
    assert record is not None
    before = journal.passages("s.1")
    journal.revise(record, "y", is_known=True)
    assert journal.passages("s.1") == before
    assert journal.passages("s.2")[0].pieces == [Words("assistant", "y")]


def test_an_id_used_again_is_another_item() -> None:
    journal = filled(user("a"))
    before = journal.passages(None)[0].key
    journal.remove("a")
    again = user("a")
    again.serial = journal.next_serial()
    journal.add(again, None)
    assert journal.passages(None)[0].key != before


def test_shrinking_lets_the_oldest_turns_go_but_never_the_last() -> None:
    records = [
        r for i in range(4) for r in (user(f"u{i}", Words("user", "x" * 300)), said(f"a{i}"))
    ]
    journal = filled(*records, user("u4"))
    assert journal.shrink(250)
    texts = [p.pieces[0] for p in journal.passages(None)]
    assert texts[0] == Words("user", "x" * 300)
    assert len(texts) == 5
    assert journal.shrink(0)
    assert [p.pieces for p in journal.passages(None)] == [[Words("user", "u4")]]
    assert not journal.shrink(0)
    assert len(journal.records) == 9  # they can still be retrieved


def test_a_conversation_is_bounded_in_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ITEMS", 3)
    assert ids(filled(*(user(f"i{i}") for i in range(5)))) == ["i2", "i3", "i4"]


def test_the_oldest_media_are_let_go_and_their_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEDIA_BYTES", 250)
    sound: list[Piece] = [ClipStart(ClipKind.SOUND, 0), MediaChunk(0, 0, bytes(100), True)]
    frames: list[Piece] = [FramePair(0, (VideoFrame(0, bytes(60)),))]
    heard = Record(UserMessage("h", [InputAudio(transcript="hello")]), 0, list(sound))
    journal = filled(heard, user("v", Words("user", "see"), *frames), user("p", Picture(bytes(95))))
    assert heard.pieces == [Words("user", "hello")]
    assert heard.sound is None
    assert journal.passages(None)[1].pieces == [Words("user", "see"), *frames]
    assert journal._num_media_bytes == 155


def test_pictures_of_earlier_turns_stay() -> None:
    pictures = [user(f"p{i}", Picture(bytes([i]))) for i in range(3)]
    journal = filled(pictures[0], said("a"), *pictures[1:])
    journal.max_pictures = 1
    kept = [p.pieces[0] for p in journal.passages(None)]
    assert kept == [Picture(b"\0"), Words("assistant", "yes"), Picture(b"\2")]


def test_sound_that_fits_into_no_message_is_not_gathered() -> None:
    chunk = MediaChunk(0, 0, bytes(MAX_ECHOED_BYTES // 2), False)
    sound = user("u", ClipStart(ClipKind.SOUND, 0), chunk, chunk)
    assert len(sound.sound or b"") == MAX_ECHOED_BYTES
    sound.pieces.append(MediaChunk(2, 0, bytes(2), True))
    assert sound.sound is None


def test_sound_comes_back_whole_if_it_is_one_clip() -> None:
    chunks: list[Piece] = [MediaChunk(0, 0, b"12", False), MediaChunk(1, 1, b"34", True)]
    assert user("u", ClipStart(ClipKind.SOUND, 0), *chunks).sound == b"1234"
    assert user("u", *[ClipStart(ClipKind.SOUND, 0)] * 2).sound is None
